"""neurons: what each neuron responds to, in words, and how well the words predict it."""
