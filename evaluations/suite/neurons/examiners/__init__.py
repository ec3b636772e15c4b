"""What explains neurons and predicts them: a lookup table or a language model."""
