"""Evaluation: quality of the networks and of every editor's edits, against exact counterfactuals where they exist.

benchmark runs all measures, on the inputs in context; scoring scores edits by edit_measures (one edit each);
editor_metrics averages them per editor. metrics has the formulas, bootstrap their intervals, counterfactuals the test
images and exact edits, batching the passes of many images. network_quality, inversion_quality, denoiser_quality and
realism measure the networks; paper_claims tests the paper's claims, and figures draws its figures; tuning tries
settings on validation images.
"""

REFERENCES = ("identity_editor", "counterfactual")  # editors whose rows bound every other row of a table
SEPARATE_SPLITS = ("heldout", "combined")  # splits of prompts that are averaged apart from the prompts seen in training
TRIAL_METRICS = (  # of one trial of `deltaspace tune`, as columns of its table
    *("reached", "kept", "psnr", "distance", "agreement", "evaluations", "seconds", "round_trip"),
)
