"""Methods that find a circuit."""
