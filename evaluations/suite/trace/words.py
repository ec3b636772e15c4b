"""Names of methods, tokens and outputs, as metrics and reports show them; imports nothing."""

NAMES = {
    "oat": "optimal constants",
    "oat_shared": "one shared constant",
    "gnt": "Gaussian noise",
    "gnt_dims": "Gaussian noise by dimension",
    "swap": "another subject",
}
WHERE = {
    "last": "last token",
    "last_subject": "last subject token",
    "first_subject": "first subject token",
    "all_subject": "all subject tokens",
    "deciding": "deciding token",
    "other": "other subject token",
}
KIND = {"attn": "attention", "mlp": "MLPs"}
