"""How large the study is run, and what it compares whatever its size."""

from dataclasses import dataclass, field

RESUNET_RECIPES = ("fp16", "published-1bit", "strict-1bit", "ptq-1bit")
HEADLINE = ("fp16", "published-1bit")  # the two networks of source 000
UNET_RECIPES = ("fp16", "strict-1bit", "ptq-1bit")
SUBSETS = ("", ":01", ":1")  # ten classes, two, one: the three studies of source 000
JUDGE_SEEDS = (0, 1, 2)  # the first is the study's judge, the others show what hangs on it
NOISE_LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3)  # of the range of grey levels
SMOOTH_LEVELS = (0.1, 0.2)  # cut-offs in cycles per pixel
FAMILIES = ("memorization", "manifold", "distribution", "texture", "legibility")
SOLVERS = ("ddim", "pndm", "dpm-solver++", "sde-dpm-solver++")


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    resunet_epochs   passes over each subset, in the order of SUBSETS; not always whole ones
    *_seeds          of the ten-class arms of each net, and of the ResUNet's two- and one-class arms; headline_seeds: of
                     the two that source 000 compares (HEADLINE), with `resunet_seeds` among them
    protocols        training protocols by name, as changes to a Run; the first is the one the headline arms use
    samples          per arm, for metrics; subset_samples: per arm on fewer classes
    grid_steps       steps of the published ancestral sampler, in the picture grids and among the samplers compared
    train_limit      training images that samples are compared with (0: all of them)
    few              training images of the positive control of memorization
    walk_*           pairs of latents, and frames between each pair, of the interpolation study; matched_*: of those of
                     its walks of which only pairs with the same classes at both ends count (`matched.py`)
    solver_*         samples and numbers of steps at which samplers are compared; ancestral_steps: of the published one
    scarce           the trainings on few images of `scarce.py`: images, steps, and number of seeds; scarce_batch:
                     images per step
    narrow_width     of the float U-Net whose 16-bit file takes no more bytes than the 1-bit one's (`narrow.py`);
                     four_bit_widths: of those that take no more at four bits than the two 1-bit ones; three_bit_width:
                     at three bits than the smaller of these
    float_widths     of the float U-Nets of `scaling.py`, rising, each with its number of seeds; one_bit_widths: of the
                     strictly 1-bit ones
    full_*           width and seeds of the published net as published (`published.py`), and whether it is so small here
                     that it is trained on any machine; else a GPU or released results decide
    long_*           steps, and number of seeds, of the U-Nets trained several times as long (`longer.py`)
    ablation_*       of notebook 07's grid: steps; up to which priority its rows are trained, seed by seed (`rows`); and
                     up to which they are drawn twice (`renormed`)
    fitted_bits      bits per weight of the networks that are quantized after training (`fitted.py`)
    """

    name: str
    resunet_width: int
    unet_width: int
    narrow_width: int
    four_bit_widths: tuple[int, int]
    three_bit_width: int
    float_widths: tuple[tuple[int, int], ...]
    one_bit_widths: tuple[tuple[int, int], ...]
    resunet_epochs: tuple[float, float, float]
    unet_steps: int
    unet_seeds: tuple[int, ...]
    headline_seeds: tuple[int, ...]
    resunet_seeds: tuple[int, ...]
    subset_seeds: tuple[int, ...]
    protocols: dict[str, dict] = field(hash=False)
    samples: int
    sample_steps: int
    grid_steps: int
    judge_images: int
    judge_epochs: int
    reference_images: int
    few: int
    scarce: tuple[tuple[int, int, int], ...]
    scarce_batch: int
    walk_pairs: int
    walk_frames: int
    matched_pairs: int
    matched_frames: int
    solver_samples: int
    solver_steps: tuple[int, ...]
    long_steps: int
    ablation_steps: int
    ablation_rows: tuple[int, ...]
    ablation_renormed: int = 7
    fitted_bits: tuple[int, ...] = (1, 2, 3, 4)
    ancestral_steps: tuple[int, ...] = (50, 100, 200, 500)
    fast_steps: int = 20  # of the second-order solver of the SDE, where it is compared at every seed
    long_seeds: int = 1
    fine_steps: int = 200  # a stride of 5 timesteps: the finer of those that BiDM's samplers take
    full_width: int = 64
    full_seeds: tuple[int, ...] = (0, 1, 2)
    full_anywhere: bool = False
    batch: int = 128
    subset_samples: int = 500
    train_limit: int = 0


MODERN = {"lr": 2e-3, "warmup": 200, "decay": "cosine", "ema": 0.999}
PUBLISHED = {"lr": 1e-3}  # Adam, constant rate, no averaging

PROFILES = {
    # tests and CI: every line of the study runs, no number means anything
    "smoke": Profile(
        name="smoke", resunet_width=4, unet_width=4, narrow_width=2, four_bit_widths=(3, 2),
        three_bit_width=2, float_widths=((2, 1), (4, 2)), one_bit_widths=((2, 1), (4, 2)),
        resunet_epochs=(0.025, 0.08, 0.15), unet_steps=40,
        unet_seeds=(0, 1), headline_seeds=(0, 1), resunet_seeds=(0,), subset_seeds=(0,), protocols={"modern": MODERN},
        samples=160, sample_steps=5, grid_steps=10, judge_images=1_000, judge_epochs=1, reference_images=300,
        few=200, scarce=((50, 20, 2), (100, 20, 1)), scarce_batch=16,
        walk_pairs=4, walk_frames=9, matched_pairs=4, matched_frames=5, solver_samples=150, solver_steps=(2, 5),
        ancestral_steps=(5,), fine_steps=20, fast_steps=4,
        long_steps=80, ablation_steps=10, ablation_rows=(5,), ablation_renormed=1,
        fitted_bits=(1, 2),
        full_width=4, full_seeds=(0,), full_anywhere=True, batch=32, subset_samples=150, train_limit=2_000,
    ),
    # a reader without a GPU
    "laptop": Profile(
        name="laptop", resunet_width=16, unet_width=16, narrow_width=5, four_bit_widths=(10, 8),
        three_bit_width=9, float_widths=((2, 3), (5, 3), (8, 3), (16, 3)), one_bit_widths=((8, 3), (16, 3)),
        resunet_epochs=(20, 20, 20), unet_steps=6_000,
        unet_seeds=(0, 1, 2), headline_seeds=(0, 1, 2, 3, 4), resunet_seeds=(0, 1, 2), subset_seeds=(0, 1, 2),
        protocols={"modern": MODERN},
        samples=2_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
        few=200, scarce=((100, 3_000, 3), (100, 1_000, 3), (100, 6_000, 1), (1_000, 3_000, 1)), scarce_batch=64,
        walk_pairs=20, walk_frames=120, matched_pairs=60, matched_frames=40,
        solver_samples=500, solver_steps=(5, 10, 20, 50),
        long_steps=24_000, ablation_steps=2_000, ablation_rows=(6, 4, 1),
    ),
    # the published net under the published protocol, and under a better one: weak training apart from 1 bit
    "paper": Profile(
        name="paper", resunet_width=64, unet_width=32, narrow_width=9, four_bit_widths=(18, 16),
        three_bit_width=18, float_widths=((4, 3), (9, 3), (16, 3), (32, 3)), one_bit_widths=((16, 3), (32, 3)),
        resunet_epochs=(20, 20, 20), unet_steps=30_000,
        unet_seeds=(0, 1, 2), headline_seeds=(0, 1, 2, 3, 4), resunet_seeds=(0, 1, 2), subset_seeds=(0, 1, 2),
        protocols={"published": PUBLISHED, "modern": MODERN},
        samples=10_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
        few=200, scarce=((100, 10_000, 3), (100, 40_000, 3), (1_000, 10_000, 3), (1_000, 40_000, 3)),
        scarce_batch=64,
        walk_pairs=100, walk_frames=120, matched_pairs=300, matched_frames=40,
        solver_samples=2_000, solver_steps=(5, 10, 20, 50, 100),
        long_steps=120_000, long_seeds=3, ablation_steps=10_000, ablation_rows=(7, 7, 7), full_anywhere=True,
        subset_samples=2_000,
    ),
}
DIGITS = {  # changes for the 1,437 small images of the embedded set, whose epochs are few steps
    "smoke": {"resunet_epochs": (1, 1, 1), "judge_images": 0, "judge_epochs": 2},
    "laptop": {
        "resunet_width": 8, "unet_width": 8, "narrow_width": 3, "four_bit_widths": (5, 4),
        "three_bit_width": 4, "float_widths": ((2, 2), (3, 2), (4, 2), (8, 2)), "one_bit_widths": ((4, 2), (8, 2)),
        "batch": 64, "resunet_epochs": (30, 45, 60),
        "unet_steps": 400,
        "samples": 300, "sample_steps": 20, "grid_steps": 100, "judge_epochs": 20,
        "few": 64, "scarce": ((32, 400, 2), (32, 1_600, 2), (128, 400, 2), (512, 400, 2)), "scarce_batch": 32,
        "walk_pairs": 12, "walk_frames": 40, "matched_pairs": 36, "matched_frames": 20,
        "unet_seeds": (0, 1), "headline_seeds": (0, 1), "resunet_seeds": (0, 1),
        "solver_samples": 200, "solver_steps": (5, 10, 20), "ancestral_steps": (20, 50),
        "subset_samples": 200, "long_steps": 1_600, "long_seeds": 2, "ablation_steps": 100, "ablation_rows": (3, 1),
        "fitted_bits": (1, 2, 4),
    },
    "paper": {"resunet_epochs": (200, 400, 400), "unet_steps": 6_000, "long_steps": 24_000, "samples": 2_000,
              "judge_epochs": 20, "few": 128, "scarce_batch": 32,
              "scarce": ((32, 3_000, 3), (32, 12_000, 3), (256, 3_000, 3))},
}
