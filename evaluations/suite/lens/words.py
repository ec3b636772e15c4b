"""Words that tables and figures share."""

from __future__ import annotations

WORDS = {
    "logit": "logit",
    "tuned": "tuned",
    "tuned-paper": "tuned, paper's recipe",
    "oca": "optimal constants (OCA)",
    "shared": "shared constants",
    "mean": "mean",
    "resample": "resample",
}
CAVEAT = (
    "The OCA, shared and mean lenses run the model's own later MLPs, the tuned lens does not: that "
    "they follow the model under edits is partly so by construction. The mean lens, which runs the "
    "same MLPs and fits nothing, is the fair control for OCA."
)
