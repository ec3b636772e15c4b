"""sae: how concentrated the features of a sparse autoencoder are, trained by SAELens."""
