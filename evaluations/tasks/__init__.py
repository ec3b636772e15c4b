"""Tasks: pairs of prompts, clean and corrupted, with a right and a wrong answer."""
