"""What all evaluations share: models, text, records, statistics."""
