"""The table of bad inputs: what is wrong, how it is reported, with which exit code.

``tests/config/test_bad_input.py`` runs the command on every row; ``python -m
tests.bad_input`` writes the table into ``docs/bad_input.md``.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from alseg.data.splits import split_by_fraction
from tests.conftest import write_msd

SIDE = 16  # voxels
SHAPE = (SIDE, SIDE, SIDE)
IDS = [f"case_{index:02d}" for index in range(10)]
PAGE = Path(__file__).parents[1] / "docs" / "bad_input.md"


@dataclass(frozen=True)
class Row:
    """One bad input.

    Attributes:
        name: what is wrong.
        message: parts of the message, in their order.
        overrides: of the command line; ``ROOT`` stands for the data set's folder.
        damage: what is done to a good data set of ten cases beforehand.
        exit_code: of the process.
        needs_user: whether the superuser gets past it.
    """

    name: str
    message: Sequence[str]
    overrides: Sequence[str] = ()
    damage: Callable[[Path], object] | None = None
    exit_code: int = 2
    needs_user: bool = False


def write_blobs(root: Path) -> Path:
    """Ten volumes of noise whose bright voxels are the one class."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=SHAPE).astype(np.float32) for _ in IDS]
    return write_msd(root, images, [(image > 1).astype(np.uint8) for image in images])


# A case of the validation split, which every run reads before it trains.
CASE = split_by_fraction(IDS, validation=0.15, test=0.25, seed=0).validation[0]


def image(root: Path) -> Path:
    return root / "imagesTr" / f"{CASE}.nii.gz"


def label(root: Path) -> Path:
    return root / "labelsTr" / f"{CASE}.nii.gz"


def dataset(root: Path) -> Path:
    return root / "dataset.json"


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def edit(**changes: object) -> Callable[[Path], object]:
    """Change entries of dataset.json."""

    def damage(root: Path) -> None:
        content = json.loads(dataset(root).read_text())
        dataset(root).write_text(json.dumps(content | changes))

    return damage


def first_entry(**changes: object) -> Callable[[Path], object]:
    """Change the first case's entry in dataset.json."""

    def damage(root: Path) -> None:
        content = json.loads(dataset(root).read_text())
        content["training"][0] |= changes
        dataset(root).write_text(json.dumps(content))

    return damage


def write_json(text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda root: dataset(root).write_bytes(data)


def voxels(which: Callable[[Path], Path], value: float) -> Callable[[Path], object]:
    """Set one voxel."""

    def damage(root: Path) -> None:
        volume = np.asarray(nibabel.load(which(root)).dataobj, np.float32).copy()
        volume[1, 2, 3] = value
        save(which(root), volume)

    return damage


def volume(
    which: Callable[[Path], Path], array: np.ndarray, affine: np.ndarray | None = None
) -> Callable[[Path], object]:
    """Replace a file."""
    return lambda root: save(which(root), array, affine)


def header(which: Callable[[Path], Path], form: str, offset: int, *values: float) -> Callable:
    """Overwrite fields of the raw header (offsets as in nifti1.h)."""

    def damage(root: Path) -> None:
        raw = bytearray(gzip.decompress(which(root).read_bytes()))
        struct.pack_into(form, raw, offset, *values)
        which(root).write_bytes(gzip.compress(bytes(raw)))

    return damage


def raw(
    which: Callable[[Path], Path], change: Callable[[bytes], bytes]
) -> Callable[[Path], object]:
    """Change the bytes of a file."""
    return lambda root: which(root).write_bytes(change(which(root).read_bytes()))


def bomb(data: bytes) -> bytes:
    """The same volume, and behind it 64 MiB of zeros in 64 KiB."""
    return gzip.compress(gzip.decompress(data) + bytes(2**26))


def rotten(data: bytes) -> bytes:
    """Intact to the last voxel, with a checksum that does not fit."""
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


def link(name: str, target: str) -> Callable[[Path], object]:
    """Put a symbolic link in the place of a file or a folder."""

    def damage(root: Path) -> None:
        path, outside = root / name, root.parent / "outside"
        outside.mkdir()
        shutil.move(path, outside / "target")
        path.symlink_to(target.replace("OUTSIDE", str(outside)))

    return damage


def loop(root: Path) -> None:
    image(root).unlink()
    image(root).symlink_to(image(root))


def split(**parts: object) -> Callable[[Path], object]:
    """Write split.json."""
    good = {"training": IDS[:6], "validation": IDS[6:8], "test": IDS[8:]}
    return lambda root: (root / "split.json").write_text(json.dumps(good | parts))


def conf(text: str | bytes) -> Callable[[Path], object]:
    """Write a strategy into a configuration folder of the user's own."""

    def damage(root: Path) -> None:
        folder = root / "conf" / "strategy"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_bytes(text.encode() if isinstance(text, str) else text)

    return damage


def without_writing(root: Path) -> None:
    (root / "cache").mkdir()
    (root / "cache").chmod(0o555)


SPLIT = ("data/splits=file", "data.splits.file=ROOT/split.json")
OWN = ("--config-dir=ROOT/conf", "strategy=mine")
ZEROS, LABELS = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)


def setting(override: str, *message: str) -> Row:
    """A bad override, which is its own description."""
    return Row(f"`{override}`", message, override.split())


CHOICES = [
    setting("strategy=varience", "strategy is 'varience'; did you mean variance? allowed are"),
    setting("strategy=nonsense", "strategy is 'nonsense'", "allowed are badge, bald"),
    setting("strategy=null", "strategy is 'null'", "allowed are badge, bald"),
    setting("data=msd_hipocampus", "data is 'msd_hipocampus'; did you mean msd_hippocampus?"),
    setting("data/splits=fractions", "data/splits is 'fractions'; did you mean fraction?"),
    setting("model=unett", "model is 'unett'; did you mean unet?"),
    setting("training=adams", "training is 'adams'; did you mean adam?"),
    setting("uncertainty=dropout", "uncertainty is 'dropout'; did you mean mc_dropout?"),
    setting("pool=big", "pool is 'big'; allowed are small, tutorial"),
    setting("trainer=tpu", "trainer is 'tpu'; did you mean gpu?"),
    setting("tracking=mflow", "tracking is 'mflow'; did you mean mlflow?"),
    setting("experiment=smok", "experiment is 'smok'; did you mean smoke?"),
    setting("strategie=variance", "there is no setting strategie; did you mean strategy?"),
    setting("steps_per_rond=5", "there is no setting steps_per_rond", "steps_per_round?"),
    setting("pool.querysize=5", "no setting pool.querysize; did you mean query_size?"),
    setting("+pool.round=5", "pool has no setting 'round'; did you mean rounds?"),
    setting("seed", "seed is not a setting; one is given as name=value"),
    setting("seed=[1", "seed=[1 cannot be read; a list ends with ], and the shell cuts at spaces"),
    setting("~seed", "there is no setting seed, which alseg needs"),
    setting("seed=${nothing}", "seed=${nothing}: there is no setting nothing"),
    setting("data.batch_size=${nothing}", "${nothing}: there is no setting nothing"),
    setting("data.task.root=???", "data.task.root is not set"),
]
SETTINGS = [
    setting("pool.initial=99", "pool.initial is 99, but the training split has 6 volumes"),
    setting("pool.initial=0", "pool.initial is 0; it must be a whole number of at least 1"),
    setting("pool.initial=2.5", "pool.initial is 2.5; it must be a whole number"),
    setting("pool.query_size=-1", "pool.query_size is -1; it must be a whole number"),
    setting("pool.rounds=null", "pool.rounds is None; it must be a whole number"),
    setting("pool.start=cold", "pool.start is 'cold'; allowed are random, diverse"),
    setting("pool.label_seed=-1", "pool.label_seed is -1; it must be a whole number of at least 0"),
    setting("pool.budget=nan", "pool.budget is nan; it must be null or a number above 0"),
    setting("steps_per_round=-5", "steps_per_round is -5; it must be a whole number"),
    setting("steps_per_round=many", "steps_per_round is 'many'"),
    setting("val_interval=0", "val_interval is 0"),
    setting("val_interval_unit=minutes", "val_interval_unit is 'minutes'; allowed are steps,"),
    setting("round_start=warm", "round_start is 'warm'; allowed are scratch, continue,"),
    setting("uncertainty.n_passes=0", "uncertainty.n_passes is 0"),
    setting("uncertainty.n_passes=40000", "uncertainty.n_passes is 40000; at most 32767 fit"),
    setting("uncertainty.gate=1.5", "uncertainty.gate is 1.5; it must be null or a number of"),
    setting("uncertainty.passes=some", "uncertainty.passes is 'some'; allowed are fixed, adaptive"),
    setting("uncertainty.passes=adaptive uncertainty.error_rate=0", "uncertainty.error_rate is 0"),
    setting(
        "uncertainty=tta uncertainty.passes=adaptive",
        "there is no setting uncertainty.passes, and uncertainty has axes only; ",
    ),
    setting(
        "oracle.wait=true",
        "there is no setting oracle.wait; oracle=person has it",
    ),
    setting(
        "uncertainty=ensemble uncertainty.gate=0.01",
        "uncertainty has n_members only; uncertainty=mc_dropout has it",
    ),
    setting("scoring.gate=0.01", "scoring.gate is now uncertainty.gate"),
    setting("+scoring.n_passes=4", "scoring.n_passes is now uncertainty.n_passes"),
    setting("seed=${scoring.n_passes}", "scoring.n_passes is now uncertainty.n_passes"),
    setting(
        "model.dropout_placement=encoder",
        "model.dropout_placement is 'encoder'; allowed are all, decoder, bottleneck",
    ),
    setting(
        "strategy=random model.dropout_placement=encoder",
        "model.dropout_placement is 'encoder'; allowed are all, decoder, bottleneck",
    ),
    setting(
        "model=segresnet model.dropout_placement=decoder",
        "but SegResNet has no dropout there: use model.dropout_placement=all",
    ),
    setting("seed=-1", "seed is -1; it must be a whole number of at least 0"),
    setting(
        "checkpoint_every_n_steps=0", "checkpoint_every_n_steps is 0; it must be a whole number"
    ),
    setting("on_nonfinite=ignore", "on_nonfinite is 'ignore'; allowed are stop, skip"),
    setting("pool.candidates=1", "pool.candidates is 1; it must be a whole number of at least 2"),
    setting("cost=gold", "cost is 'gold'; allowed are volume, voxels,"),
    setting("cost=minutes", "this oracle measures none; choose oracle=person, or one of volume"),
    setting("target_dice=2", "target_dice is 2; it must be null or a number above 0"),
    setting("pictures=-1", "pictures is -1; it must be a whole number of at least 0"),
    setting("save_maps=maybe", "save_maps is 'maybe'; it must be true or false"),
    setting("cache_dir=null", "cache_dir is None; it must be text"),
    setting("output_dir=null", "output_dir is None; it must be text"),
    setting("experiment_name=7", "experiment_name is 7; it must be text"),
    setting("cache_dir=/proc/nowhere", "/proc/nowhere: No such file or directory"),
    setting("hydra.run.dir=/proc/nowhere", "/proc/nowhere: No such file or directory"),
    setting("resume=3", "resume is 3; it must be text"),
    setting("sweep.resume=true", "sweep.resume continues a sweep (-m)"),
    setting("data.task.root=/nowhere", "data.root is /nowhere, which is not a folder"),
    setting("data.task.root=null", "data.root is None; it must be the path of a folder"),
    setting("data.task=null", "data.task builds None", "type Task"),
    setting(
        "data.task._target_=alseg.data.formats.msd.read_mds",
        "data.task._target_: alseg.data.formats.msd holds no read_mds; did you mean read_msd?",
    ),
    setting("data.splits.test=0.99", "data.splits leaves a part empty: 10 cases"),
    setting("data.splits.validation=half", "data.splits.validation is 'half'"),
    setting("data.splits.seed=x", "data.splits.seed is 'x'"),
    setting(
        "data/splits=growing data.splits.validation_share=1",
        "data.splits.validation_share is 1; it must be a number above 0 and below 1",
    ),
    setting(
        "data.groups=case",
        "data.splits leaves a part empty: 10 cases in 1 group of data.groups",
    ),
    setting(
        'data.groups="("',
        "data.groups is '('; it must be a regular expression of case ids",
    ),
    setting(
        "validation=cross data/splits=annotated data.groups=case",
        "there is one group in the pool of 10 cases by data.groups=case",
    ),
    setting("data/splits=growing pool.initial=1", "pool.initial is 1; this split takes at least 2"),
    setting(
        "data/splits=annotated",
        "data.splits leaves no case to validate with; add validation=cross",
    ),
    setting(
        "validation=cross",
        "validation=cross validates with all annotated cases",
        "choose data/splits=annotated",
    ),
    setting(
        "validation=cross data/splits=annotated pool.initial=1",
        "pool.initial is 1; this split takes at least 2",
    ),
    setting(
        "validation=cross data/splits=annotated validation.folds=1",
        "validation.folds is 1; it must be a whole number of at least 2",
    ),
    setting(
        "validation=cross data/splits=annotated round_start=continue",
        "validation=cross takes round_start=scratch, not continue",
    ),
    setting(
        "validation=cross data/splits=annotated semi_supervised=pseudo_label",
        "semi_supervised keeps the better of two stages by validation Dice",
    ),
    setting("pool.unit=voxel", "pool.unit is 'voxel'; allowed are volume, patch, slice"),
    setting("pool.unit=patch", "pool.unit=patch needs pool.patch_voxels or pool.patch_mm"),
    setting(
        "pool.unit=patch pool.patch_mm=0.3",
        "pool.patch_mm is 0.3 along axis 0 of the files, but voxels measure up to 1 mm there",
        "use pool.patch_voxels",
    ),
    setting(
        "pool.unit=slice pool.slice_axis=3", "pool.slice_axis is 3; it must be auto, 0, 1 or 2"
    ),
    setting(
        "pool.unit=patch pool.patch_voxels=8 pool.slice_axis=1",
        "pool.slice_axis is for pool.unit=slice, not for patch",
    ),
    setting(
        "pool.unit=slice pool.patch_mm=20", "pool.patch_mm is for pool.unit=patch, not for slice"
    ),
    setting(
        "pool.unit=patch pool.patch_voxels=[8,-8,8]",
        "pool.patch_voxels along axis 1 is -8; it must be a whole number of at least 1",
    ),
    setting(
        "pool.unit=slice validation=cross",
        "validation=cross validates with annotated cases, which must be labelled as a whole; with "
        "pool.unit=slice use validation=held_out and a split with a validation part of its own",
    ),
    setting(
        "pool.unit=slice data/splits=annotated",
        "data.splits validates with annotated cases, which must be labelled as a whole; with "
        "pool.unit=slice use validation=held_out and a split with a validation part of its own",
    ),
    setting(
        "pool.unit=slice strategy=foreground_entropy",
        "strategy foreground_entropy has the aggregation foreground_mean, which is for whole "
        "volumes; with pool.unit=patch or slice use strategy/aggregation=mean or sum",
    ),
    setting("evaluation=null", "evaluation is None; it must be a group of settings"),
    setting("+evaluation.percentile=99", "evaluation has no setting 'percentile'; allowed are"),
    setting("evaluation.space=file", "evaluation.space is 'file'; allowed are source, grid"),
    setting("evaluation.absent=one", "evaluation.absent is 'one'; allowed are nan, zero"),
    setting("evaluation.networks=0", "evaluation.networks is 0; it must be a whole number of at"),
    setting(
        "evaluation.networks=3 validation=cross data/splits=annotated",
        "evaluation.networks is 3, which does not go with validation=cross, where one network a "
        "fold judges the fold's cases; leave it at 1",
    ),
    setting(
        "evaluation.networks=2 semi_supervised=pseudo_label",
        "which does not go with semi_supervised, whose second stage the round's first network",
    ),
    setting(
        "evaluation.networks=2 uncertainty=svgd",
        "which does not go with uncertainty=svgd, whose networks are trained as one",
    ),
    setting("evaluation.metrics=[dice,hd59]", "has no metric 'hd59'; did you mean hd95? allowed"),
    setting("evaluation.metrics=[hd95]", "evaluation.metrics lacks dice, by which a run is judged"),
    setting("evaluation.metrics=dice", "evaluation.metrics is 'dice'; it must be a list, such as"),
    setting("evaluation.tolerance_mm=0", "evaluation.tolerance_mm is 0; it must be a number above"),
    setting("evaluation.tolerance_mm={blob:-2}", "tolerance_mm.blob is -2; it must be a number"),
    setting("evaluation.tolerance_mm={blb:1}", "names the class 'blb'", "did you mean blob?"),
    setting("evaluation.tolerance_mm={}", "evaluation.tolerance_mm has no tolerance for blob"),
    setting("effort.minutes_per_cm=-1", "effort.minutes_per_cm is -1; it must be a number of at"),
    setting("data.preprocess=null", "data.preprocess builds None"),
    setting("data.augment=[3]", "data.augment builds [3]"),
    setting("data.patch_size=[33,32,32]", "it makes [34, 32, 32] of them"),
    setting("data.patch_size=[-16,16,16]", "data.patch_size is [-16, 16, 16]; it must be three"),
    setting("data.patch_size=16", "data.patch_size is 16; it must be three whole numbers"),
    setting("data.batch_size=0", "data.batch_size is 0; it must be a whole number"),
    setting("data.num_workers=-1", "data.num_workers is -1; it must be auto or a whole number"),
    setting(
        "data.inferer.overlap=2", "data.inferer.overlap is 2; it must be a number of at least 0"
    ),
    setting("data.inferer.sw_batch_size=0", "data.inferer.sw_batch_size is 0"),
    setting("data.inferer.roi_size=[16,16]", "data.inferer: Inputs must have 4 dimensions"),
    setting("data.inferer=null", "data.inferer builds None", "type Inferer"),
    setting("data.scoring_inferer=null", "data.scoring_inferer builds None"),
    setting("model.dropout=0", "set model.dropout above 0"),
    setting("model.dropout=2", "model.network: dropout probability", "got 2.0"),
    setting("model=unet_small data.patch_size=[36,32,32]", "does not take patches", "[36, 32, 32]"),
    setting("model.network.strides=[0]", "the network does not take patches"),
    setting(
        "model.network._target_=monai.networks.nets.UNett",
        "model.network._target_: monai.networks.nets holds no UNett; did you mean UNet?",
    ),
    setting("training.learning_rate=fast", "training.learning_rate is 'fast'; it must be"),
    setting("training.learning_rate=-1", "training.learning_rate is -1; it must be"),
    setting("training.loss=null", "training.loss: 'NoneType' object is not callable"),
    setting("training.optimizer._target_=torch.optim.Adamm", "did you mean Adam?"),
    setting("training.schedule.total_steps=1", "total_steps is 1; it must be at least the 2 of"),
    setting("strategy=entropy strategy/selector=k_center", "its selector looks at no score"),
    setting("strategy=random strategy/selector=top_k", "this selector needs scores: give"),
    setting("strategy=random strategy/measure=entropy", "has a strategy/measure to exchange; one"),
    setting("strategy=random +strategy/measure=entropy", "measure and aggregation come together"),
    setting("strategy/selector=powr", "strategy/selector is 'powr'; did you mean power? allowed"),
    setting(
        "strategy=oracle_dice strategy/measure=variance strategy/aggregation=mean",
        "strategy oracle_dice+measure=variance+aggregation=mean: it scores all cases 0, as a",
    ),
    setting("strategy.measure=null", "measure and aggregation come together or not"),
    setting("strategy.selector=null", "strategy.selector is None; it must be a selector, such as"),
    setting("strategy.name=null", "strategy.name is None; it must be text"),
    setting(
        "strategy=top_fraction_variance strategy.aggregation.fraction=7",
        "strategy top_fraction_variance: fraction is 7; it must lie in (0, 1]",
    ),
    setting("strategy=power_bald strategy.selector.beta=-1", "beta is -1; it must be a positive"),
    setting("uncertainty=ensemble uncertainty.n_members=0", "uncertainty.n_members is 0"),
    setting("uncertainty=tta uncertainty.axes=[7]", "uncertainty.axes is [7]"),
    setting("trainer.precision=7", "trainer: Precision 7 is invalid"),
    setting("trainer.precision=bf16-true", "in half precision", "use bf16-mixed"),
    setting("trainer.devices=banana", "trainer.devices is 'banana'"),
    setting("trainer.devices=null", "trainer.devices is None"),
    setting("+trainer.typo=1", "trainer: ", "unexpected keyword argument 'typo'"),
    setting(
        "tracking=mlflow tracking.mlflow.uri=null", "tracking.mlflow.uri is None; it must be text"
    ),
    setting(
        "tracking=mlflow tracking.mlflow.uri=ftp://nowhere", "tracking.mlflow.uri ftp://nowhere: "
    ),
    setting(
        "tracking=mlflow tracking.mlflow.skip=3",
        "tracking.mlflow.skip is 3; it must be a list of patterns",
    ),
]
YAML = [
    Row("broken YAML in `--config-dir`", ["mine.yaml", "line 1"], OWN, conf("name: [")),
    Row(
        "YAML that asks for Python objects (nothing is run)",
        ["could not determine a constructor for the tag", "mine.yaml"],
        OWN,
        conf("name: !!python/object/apply:os.system ['exit 3']"),
    ),
    Row("YAML that is a list", ["strategy builds ['name']", "type Strategy"], OWN, conf("- name")),
    Row(
        "YAML that is not UTF-8",
        ["a YAML file of the configuration is not UTF-8: "],
        OWN,
        conf(b"name: \xff\xfe"),
    ),
    Row("a key twice in one YAML", ["duplicate key name"], OWN, conf("name: a\nname: b\n")),
    Row("`--config-dir` is not a folder", ["/nowhere"], ("--config-dir=/nowhere",)),
]
JSON = [
    Row("no dataset.json", ["holds no dataset.json"], (), lambda root: dataset(root).unlink()),
    Row(
        "dataset.json is cut off", ["dataset.json is not valid JSON"], (), write_json('{"name": "B')
    ),
    Row("dataset.json is empty", ["dataset.json is not valid JSON"], (), write_json("")),
    Row("dataset.json is a list", ["must hold a JSON object, not a list"], (), write_json("[]")),
    Row("dataset.json is not UTF-8", ["is not valid JSON"], (), write_json(b"\xff\xfe\x00")),
    Row(
        "dataset.json is nested a million deep",
        ["dataset.json is not valid JSON", "recursion"],
        (),
        write_json('{"a":' * 10**6),
    ),
    Row(
        "dataset.json holds a number of 5000 digits",
        ["dataset.json is not valid JSON", "digits"],
        (),
        write_json('{"labels": ' + "9" * 5000 + "}"),
    ),
    Row("dataset.json lists no cases", ["lists no cases under 'training'"], (), edit(training=[])),
    Row(
        "'training' is not a list", ["lists no cases under 'training'"], (), edit(training={"a": 1})
    ),
    Row(
        "an entry without a label",
        ["needs 'image' and 'label', got"],
        (),
        edit(training=[{"image": "imagesTr/case_00.nii.gz"}]),
    ),
    Row("a file name that is a number", ["printable characters, got 3"], (), first_entry(image=3)),
    Row(
        "a file name with a NUL",
        ["printable characters, got 'a\\x00b'"],
        (),
        first_entry(image="a\0b"),
    ),
    Row(
        "a file name that clears the screen",
        ["printable characters, got '\\x1b[2J'"],
        (),
        first_entry(image="\x1b[2J"),
    ),
    Row(
        "a file name of 5000 letters",
        ["which is not a path: ", "too long"],
        (),
        first_entry(image="a" * 5000),
    ),
    Row(
        "a file name without a case",
        ["names .nii.gz, which gives the case no name"],
        (),
        lambda root: (
            shutil.copy(image(root), root / "imagesTr" / ".nii.gz"),
            first_entry(image="imagesTr/.nii.gz")(root),
        ),
    ),
    Row(
        "an absolute path",
        ["names /etc/hostname, which lies outside the data set's folder"],
        (),
        first_entry(image="/etc/hostname"),
    ),
    Row(
        "a path with `..`",
        ["names ../outside.nii.gz, which lies outside the data set's folder"],
        (),
        first_entry(image="../outside.nii.gz"),
    ),
    Row(
        "a case twice",
        ["dataset.json names the case case_01 twice"],
        (),
        first_entry(image="imagesTr/case_01.nii.gz"),
    ),
    Row(
        "one label for two cases",
        ["labelsTr/case_01.nii.gz twice, for case_00 and for case_01"],
        (),
        first_entry(label="labelsTr/case_01.nii.gz"),
    ),
    Row(
        "a key twice in one object of dataset.json",
        ["not valid JSON: the key '1' comes twice"],
        (),
        write_json('{"labels": {"0": "background", "1": "a", "1": "b"}}'),
    ),
    Row(
        "the background is not value 0",
        ["'labels' gives background the value 1; it must be 0"],
        (),
        edit(labels={"0": "blob", "1": "background"}),
    ),
    Row(
        "dataset.json of nnU-Net v2",
        ["describes an nnU-Net v2 raw data set; use data=nnunet"],
        (),
        write_json('{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}'),
    ),
    Row("one class", ["'labels' must number at least 2 names"], (), edit(labels={"0": "b"})),
    Row(
        "class numbers with a gap", ["'labels' must number"], (), edit(labels={"0": "b", "2": "x"})
    ),
    Row("two classes of one name", ["holds a name twice"], (), edit(labels={"0": "b", "1": "b"})),
    Row(
        "annotated_classes that name a case twice",
        ["'annotated_classes' names the case case_00 twice"],
        (),
        edit(annotated_classes={"case_00": ["blob"], "imagesTr/case_00.nii.gz": ["blob"]}),
    ),
    Row(
        "annotated_classes with a class that there is not",
        ["gives case_00 the class 'x'; there are"],
        (),
        edit(annotated_classes={"case_00": ["x"]}),
    ),
    Row("a class without a name", ["holds the name None"], (), edit(labels={"0": "b", "1": None})),
    Row("no modality", ["'modality' must number at least 1 name"], (), edit(modality={})),
    Row(
        "a data set's name that is not text",
        ["'name' is [1], which is not text"],
        (),
        edit(name=[1]),
    ),
    Row("a missing image", ["but there is no file"], (), lambda root: image(root).unlink()),
    Row("a missing label", ["but there is no file"], (), lambda root: label(root).unlink()),
    Row(
        "several missing labels",
        ["but there is no file", "1 more cannot be found either: ./labelsTr/case_0"],
        (),
        lambda root: [path.unlink() for path in sorted((root / "labelsTr").glob("*.nii.gz"))[1:3]],
    ),
]
LINKS = [
    Row(
        "an image that links to nothing, as before `git annex get`",
        ["a link to", "which is not there; fetch the content first"],
        (),
        lambda root: (image(root).unlink(), image(root).symlink_to("../.git/annex/objects/key")),
    ),
    Row(
        "an image that is a pointer of Git LFS",
        ["only says where its content is; fetch it first"],
        (),
        raw(image, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ),
    Row(
        "a link to a folder in the place of an image",
        ["but there is no file"],
        (),
        lambda root: (image(root).unlink(), image(root).symlink_to("/etc")),
    ),
    Row(
        "a link to a device in the place of an image",
        ["but there is no file"],
        (),
        lambda root: (image(root).unlink(), image(root).symlink_to("/dev/zero")),
    ),
    Row(
        "a dataset.json that links to text which is no JSON",
        ["dataset.json is not valid JSON"],
        (),
        lambda root: (dataset(root).unlink(), dataset(root).symlink_to("/etc/passwd")),
    ),
    Row("an image that links to itself", ["which is not a path"], (), loop),
    Row(
        "an image that is a folder",
        ["but there is no file"],
        (),
        lambda root: (image(root).unlink(), image(root).mkdir()),
    ),
    Row(
        "an image that must not be read",
        [f"{CASE}.nii.gz cannot be read: Permission denied"],
        (),
        lambda root: image(root).chmod(0),
        needs_user=True,
    ),
    Row(
        "a dataset.json that must not be read",
        ["dataset.json cannot be read: Permission denied"],
        (),
        lambda root: dataset(root).chmod(0),
        needs_user=True,
    ),
    Row(
        "a cache that must not be written",
        ["cache", "Permission denied"],
        ("cache_dir=ROOT/cache",),
        without_writing,
        needs_user=True,
    ),
    Row("a read-only place for the cache", ["/sys/cache: "], ("cache_dir=/sys/cache",)),
]
FILES = [
    Row(
        "an image that is text", ["is not a readable NIfTI file"], (), raw(image, lambda _: b"text")
    ),
    Row("an empty image", ["is empty; copy it again"], (), raw(image, lambda _: b"")),
    Row(
        "an image of 100 bytes",
        ["is cut off: it holds 100 bytes, and the header of a NIfTI file has 348"],
        (),
        raw(image, lambda b: gzip.compress(gzip.decompress(b)[:100])),
    ),
    Row(
        "a gzip that is cut off",
        ["is cut off: its compressed bytes end too early"],
        (),
        raw(image, lambda b: b[:2000]),
    ),
    Row(
        "a gzip without its last byte",
        ["is cut off: its compressed bytes end too early"],
        (),
        raw(image, lambda b: b[:-1]),
    ),
    Row("a gzip with a wrong checksum", ["CRC check failed"], (), raw(image, rotten)),
    Row("a label with a wrong checksum", ["CRC check failed"], (), raw(label, rotten)),
    Row(
        "a gzip bomb behind the voxels",
        ["continues after the 16736 bytes that its header declares"],
        (),
        raw(image, bomb),
    ),
    Row(
        "a gzip bomb in the header",
        ["more than the file can hold"],
        (),
        header(image, "<8h", 40, 3, 1000, 1000, 1000, 1, 1, 1, 1),
    ),
    Row(
        "a volume of 2 TiB",
        ["alseg reads up to 8 GiB a file"],
        (),
        header(image, "<8h", 40, 3, 8192, 8192, 8192, 1, 1, 1, 1),
    ),
    Row(
        "an axis of no voxels",
        ["which holds no voxels"],
        (),
        header(image, "<8h", 40, 3, 16, 0, 16, 1, 1, 1, 1),
    ),
    Row(
        "an axis of -16 voxels",
        ["which holds no voxels"],
        (),
        header(image, "<8h", 40, 3, 16, -16, 16, 1, 1, 1, 1),
    ),
    Row("voxels that start nowhere", ["cannot be"], (), header(image, "<f", 108, float("nan"))),
    Row(
        "voxels of an unknown type", ["is not a readable NIfTI"], (), header(image, "<h", 70, 12345)
    ),
    Row(
        "complex voxels",
        ["holds voxels of type complex64; alseg reads integers and floats"],
        (),
        volume(image, np.zeros(SHAPE, np.complex64)),
    ),
    Row("NaN in an image", ["holds voxels that are NaN or infinite"], (), voxels(image, np.nan)),
    Row(
        "infinity in an image", ["holds voxels that are NaN or infinite"], (), voxels(image, np.inf)
    ),
    Row(
        "an image in another format",
        ["does not end in", "which alseg reads"],
        (),
        lambda root: (
            image(root).rename(root / "scan.mnc"),
            write_json(dataset(root).read_text().replace(f"imagesTr/{CASE}.nii.gz", "scan.mnc"))(
                root
            ),
        ),
    ),
]
GEOMETRY = [
    Row(
        "4D where 3D is meant",
        ["has shape (16, 16, 16, 2); a 3D volume with 1 channel is needed"],
        (),
        volume(image, np.zeros((*SHAPE, 2), np.float32)),
    ),
    Row("2D where 3D is meant", ["has shape (16, 16); a 3D volume"], (), volume(image, ZEROS[0])),
    Row(
        "5D where 3D is meant",
        ["a 3D volume"],
        (),
        volume(image, np.zeros((*SHAPE, 1, 2), np.float32)),
    ),
    Row(
        "a channel too few",
        ["a 3D volume with 2 channels"],
        (),
        edit(modality={"0": "T1", "1": "T2"}),
    ),
    Row(
        "a label of another shape",
        ["has shape (16, 16, 15), but its image", "has (16, 16, 16)"],
        (),
        volume(label, LABELS[..., 1:]),
    ),
    Row(
        "a 4D label",
        ["has shape (16, 16, 16, 2), but its image"],
        (),
        volume(label, np.zeros((*SHAPE, 2), np.uint8)),
    ),
    Row(
        "a label of another spacing",
        ["has the spacing [1.0, 1.0, 2.0] mm, but", "has [1.0, 1.0, 1.0] mm"],
        (),
        volume(label, LABELS, np.diag([1.0, 1, 2, 1])),
    ),
    Row(
        "a label of another direction",
        ["has another direction or origin than"],
        (),
        volume(label, LABELS, np.diag([-1.0, -1, 1, 1])),
    ),
    Row(
        "a label of another origin",
        ["has another direction or origin than"],
        (),
        volume(label, LABELS, np.eye(4) + np.outer([1, 0, 0, 0], [0, 0, 0, 5])),
    ),
    Row(
        "a grid that cannot be meant: micrometres read as mm",
        ["voxels of 500 x 500 x 500 mm, which Spacing turns into", "the unit of its header or"],
        ("data.preprocess=[{_target_:monai.transforms.Spacing,pixdim:[1.5,1.5,1.5]}]",),
        lambda root: [
            save(path, np.asarray(nibabel.load(path).dataobj), np.diag([500.0, 500, 500, 1]))
            for path in (image(root), label(root))
        ],
    ),
    Row(
        "a preprocessing that fails",
        ["preprocessing", "failed in Zoom: "],
        ("data.preprocess=[{_target_:monai.transforms.Zoom,zoom:[1,2]}]",),
    ),
    Row(
        "voxels without a volume",
        ["whose voxels have no volume"],
        (),
        header(image, "<12f", 280, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0),
    ),
    Row(
        "NaN in the voxel-to-world matrix",
        ["whose voxels have no volume"],
        (),
        header(image, "<12f", 280, float("nan"), *[0.0] * 11),
    ),
]
CLASSES = [
    Row(
        "a label value that is not a class",
        ["holds [7.0]; allowed are 0 to 1 (background, blob)"],
        (),
        voxels(label, 7),
    ),
    Row("a negative label value", ["holds [-1.0]"], (), voxels(label, -1)),
    Row("a fraction in a label", ["holds [0.5]"], (), voxels(label, 0.5)),
    Row(
        "no foreground in any validation label",
        ["no label of the validation part (", ") holds foreground, so its Dice is undefined"],
        (),
        lambda root: [save(root / "labelsTr" / f"{name}.nii.gz", LABELS) for name in IDS],
    ),
    Row("NaN in a label", ["holds [nan]"], (), voxels(label, np.nan)),
]
SPLITS = [
    Row("no split file", ["there is no file", "split.json"], SPLIT),
    Row("a split file without a test part", ["'test' must be a list"], SPLIT, split(test=None)),
    Row(
        "an empty part in a split file",
        ["'training' must be a list with at"],
        SPLIT,
        split(training=[]),
    ),
    Row(
        "an unknown case in a split file",
        ["'test' names 'case_99', which the data set does not have"],
        SPLIT,
        split(test=["case_99"]),
    ),
    Row("a case twice in a part", ["names case_00 twice"], SPLIT, split(training=IDS[:1] * 2)),
    Row("a case in two parts", ["names case_00 twice"], SPLIT, split(test=IDS[:1])),
    Row(
        "a number in a split file", ["'test' holds 8, which names no case"], SPLIT, split(test=[8])
    ),
    Row(
        "a split file that is not a path",
        ["data.splits.file is 3; it must be the path"],
        (*SPLIT, "data.splits.file=3"),
    ),
]
SECTIONS = {
    "Choices and names": CHOICES,
    "Values": SETTINGS,
    "YAML of one's own": YAML,
    "dataset.json": JSON,
    "Links and permissions": LINKS,
    "Image and label files": FILES,
    "Geometry": GEOMETRY,
    "Label values": CLASSES,
    "Split files": SPLITS,
}
ROWS = [row for rows in SECTIONS.values() for row in rows]

HEAD = """# Bad input

What alseg does with input that it cannot use: one sentence on stderr after `alseg: error:`, no
traceback (`ALSEG_TRACEBACK=1` shows it), no run folder, and an exit code:

| exit code | |
| --- | --- |
| 0 | done; or a person has to annotate first, and the last line says what |
| 1 | jobs of a sweep have not finished; or a fault in alseg, with its traceback |
| 2 | bad input: a file, a setting or the command line has to be mended |
| 130 | interrupted |

The table is written by `python -m tests.bad_input`; each row of it is a test
(`tests/config/test_bad_input.py`). Messages are shortened: `...` stands for paths and the like.
`python -m alseg.validate` runs the checks of the files over a whole data set before a run.

What can be used but is worth knowing is reported by `alseg.validate`, by case and of the whole data
set (`cases` and `data_set` in its JSON), and, as far as it can be known without reading voxels,
by a run's first lines (`warning: data set: ...`): numbers in dataset.json that do not agree with
what is there, files that nothing names, images without a label, headers without orientation codes,
in other units than mm, or that contradict themselves, and (`alseg.validate` only) intensities that
are shifted or scaled against those of all other cases.

A name in dataset.json never leaves the data set's folder: absolute paths and `..` beyond it are
refused. A symbolic link *in* that folder is followed wherever it leads, as a clone of git-annex or
DataLad needs; what leads out of the folder is reported. The header of an NRRD or MetaImage file
names voxels in its own folder only. Only regular files are read, as volumes or JSON, and nothing in
them is run. Case ids come from the data set's own names, never targets.

A run folder may come from somebody else as well. Nothing in it is unpickled: checkpoints are read
with weights only. Its `config.yaml` names by `_target_` what `resume=`, `alseg.predict`,
`alseg.export` and the notebook build, so before any of it is imported each name is looked at:
what alseg's own YAML names and its parts that only compute, MONAI's transforms, losses, networks
and inferers, `torch.nn`, `torch.optim`, and Lightning's callbacks, profilers and precision are
built; no method, no private name, nothing that one of these modules has imported, and no reader
that takes a class by its name (`monai.transforms.LoadImage`); the list is in
`alseg/config/trust.py`. All else is refused in one sentence. A run with functions of your own
continues with `trusted_packages=[my_measures]`, on the command line; what the folder says of it
is ignored. A `${...}` in its `config.yaml` is plain text. What you compose yourself, a first run
or a sweep, is yours and not looked at. The folder still says which paths are read and written and
which tracking store is sent to: look at `config.yaml` and `start.json` first, or give
`output_dir=` and `tracking=none` yourself. Into the folder itself nothing is written as long as a
link in it leads out of it, but for the images in request folders, which are only read. The
comparison builds nothing. """


def page() -> str:
    """The page docs/bad_input.md."""
    lines = [HEAD]
    for title, rows in SECTIONS.items():
        lines += [f"## {title}", "", "| input | message | exit code |", "| --- | --- | --- |"]
        for row in rows:
            message = " ... ".join(part.strip() for part in row.message).replace("|", "\\|")
            lines.append(f"| {row.name} | {message} | {row.exit_code} |")
        lines.append("")
    return "\n".join(lines).rstrip() + f"\n\n{len(ROWS)} rows.\n"


if __name__ == "__main__":
    PAGE.write_text(page())
