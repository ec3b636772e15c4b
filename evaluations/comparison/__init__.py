"""What spans evaluations: seeds, the paper's tables, the HTML page."""
