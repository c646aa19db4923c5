"""Tables of the page: which numbers of metrics.json they show, with their titles and explanations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of the editors' table. better: 1 when more is better, -1 when less is, 0 when neither."""

    key: str
    title: str
    digits: int
    better: int
    help: str


EDITOR_COLUMNS = (
    Column("reached", "reached", 2, 1, "share of edits in which the oracle reads the requested value"),
    Column("reached_heldout", "reached, new words", 2, 1, "reached, for prompts in synonyms that no network has seen"),
    Column("reached_combined", "reached, combined", 2, 1, "reached, for prompts of several attributes: all of them"),
    Column("kept", "kept", 2, 1, "share of the other attributes that are read as in the counterfactual"),
    Column("identity", "identity", 2, 1, "cosine with the counterfactual, identity network"),
    Column("counterfactual_gain", "gain, dB", 2, 1, "PSNR to the counterfactual, over the same editor's at strength 0"),
    Column("gain_over_input", "gain over input, dB", 2, 1, "PSNR to the counterfactual, over the input's"),
    Column("psnr", "PSNR, dB", 1, 1, "to the counterfactual; identical images count as 60"),
    Column("fid_oracle", "FID-oracle", 2, -1, "Fréchet distance to the counterfactuals in the oracle's features"),
    Column("fid", "FID", 2, -1, "Fréchet distance of all edits to all test images, Inception; biased up by few images"),
    Column("lpips_input", "LPIPS to input", 3, 0, "perceptual distance to the input (AlexNet)"),
    Column("clip_direction", "CLIP direction", 2, 1, "cosine of the edit's step in CLIP space with the text's"),
    Column(
        *("realism", "realism", 2, 0),
        "share that a linear discriminator between renders and the generator's samples, which never saw an edit, takes"
        " for renders: compare it with the same editor's unedited images",
    ),
    Column("realism_unedited", "of unedited", 2, 0, "the same share of the editor's reconstructions, at strength 0"),
    Column("outside_psnr", "outside, dB", 1, 1, "PSNR to the input where the counterfactual equals the input"),
    Column("mask_iou", "mask IoU", 2, 1, "the editor's mask against where the counterfactual differs from the input"),
    Column("psnr_input", "PSNR to input, dB", 1, 0, "distance of the edit from its input; the paper's protocol"),
    Column("identity_input", "identity to input", 2, 0, "cosine with the input, identity network"),
    Column("evaluations", "passes", 0, 0, "network evaluations per image"),
    Column("images", "images", 0, 0, "test images to which at least one prompt applies"),
)
NETWORK_TABLES = (  # title, key in metrics.json, rows of (key, title, digits)
    ("Oracle", "oracle", (("mean", "accuracy", 3), ("min", "weakest attribute", 3), ("chance", "chance", 3))),
    (
        "Second oracle, another architecture",
        "oracle2",
        (
            ("mean", "accuracy", 3),
            ("min", "weakest attribute", 3),
            ("largest_difference", "largest difference to the first, of any editor's reached or kept", 3),
        ),
    ),
    (
        "Generator",
        "generator",
        (
            ("fid_oracle", "FID in the oracle's features", 2),
            ("fid_floor", "FID between two halves of the renders", 2),
            ("precision", "precision", 3),
            ("recall", "recall", 3),
            ("attribute_share_error", "largest relative error of an attribute value's share", 2),
            ("discriminator_accuracy", "accuracy of a linear discriminator between samples and renders", 3),
        ),
    ),
    ("Identity network", "identity", (("auc", "verification, area under the ROC curve", 3),)),
    (
        "CLIP",
        "clip",
        (
            ("zero_shot", "zero-shot accuracy", 3),
            ("zero_shot_min", "weakest attribute", 3),
            ("zero_shot_heldout", "in unseen synonyms, replaced by known words", 3),
            ("zero_shot_literal", "in unseen synonyms, as they stand", 3),
            ("chance", "chance", 3),
            ("delta_cos_paired", "cos(image delta, own text delta)", 3),
            ("delta_cos_mismatched", "cos(image delta, another's text delta)", 3),
            ("retrieval_raw", "image to text, top 1", 3),
            ("retrieval_delta", "image delta to text delta, top 1", 3),
            ("attribute_direction_cos", "cos(text delta, counterfactual step)", 3),
        ),
    ),
    (
        "Inversion",
        "inversion",
        (
            ("reached_inverted", "reached by DeltaEdit-G on inverted images", 3),
            ("reached_sampled", "reached on the generator's samples", 3),
            ("reached_gap", "the first minus the second", 3),
        ),
    ),
    (
        "Delta Mapper",
        "mapper",
        (
            ("val_cos", "cosine, validation", 3),
            ("val_mse", "MSE, validation", 3),
            ("explained", "explained variance", 3),
            ("latent_explained", "explained variance of s, conditioned on another image", 3),
            ("latent_mse", "MSE of s, conditioned on another image", 3),
            ("latent_mse_nothing", "MSE of s, unedited", 3),
            ("pixel_mse", "MSE of pixels in [-1,1], conditioned on another image (the paper: 0.17, units unstated)", 3),
            ("pixel_mse_nothing", "MSE of pixels, unedited", 3),
            ("pixel_mse_floor", "MSE of pixels, from the other image's own s", 3),
        ),
    ),
    (
        "Diffusion",
        "diffusion",
        (
            ("style_matters", "attributes taken from another image's style", 3),
            ("evaluations_per_edit", "network passes per edit", 0),
        ),
    ),
)
CODES_ALONE = "its codes alone, in W+"
RECONSTRUCTIONS = (  # title, path in metrics.json (paper, table III)
    ("inversion, as editors use it", ("inversion",)),
    (CODES_ALONE, ("inversion", "codes")),
    ("inversion in s, by as many optimisation steps (24 images)", ("inversion", "in_s")),
    ("the generator's own samples (24), by their codes alone", ("inversion", "round_trip")),
    ("DDIM, conditioned on the mean style", ("diffusion", "ddim_mean_style")),
    ("DDIM, conditioned on the image's own style", ("diffusion", "ddim")),
    ("diffusion, as editors use it", ("diffusion", "reconstruction")),
)
RECONSTRUCTION_COLUMNS = (
    ("ssim", "SSIM", 3),
    ("mse", "MSE", 5),
    ("psnr", "PSNR, dB", 1),
    ("identity", "identity", 2),
    ("encoder_psnr", "encoder alone, dB", 1),
)
