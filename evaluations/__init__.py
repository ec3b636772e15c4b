"""The battery: one room per question, each open to any decoder-only HookedTransformer."""
