"""Evaluation: quality of the networks and of every editor's edits, against exact counterfactuals where they exist."""

REFERENCES = ("identity_editor", "counterfactual")  # editors whose rows bound every other row of a table
SEPARATE_SPLITS = ("heldout", "combined")  # splits of prompts that are averaged apart from the prompts seen in training
TRIAL_METRICS = (  # of one trial of `deltaspace tune`, as columns of its table
    *("reached", "kept", "psnr", "distance", "agreement", "evaluations", "seconds", "round_trip"),
)
