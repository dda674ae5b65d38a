"""Generated mistakes in every shipped configuration: all are refused, and no valid value is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddpm import config as c
from ddpm.config.schema import LOCAL_FOLDER, Config, Item, items_under, sections_under
from ddpm.errors import InputError
from tests.support.tree import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ITEMS = items_under(Config)

NO_NUMBER = [
    "abc",
    "nan",
    ".nan",
    "inf",
    "-.inf",
    "true",
    "1:30",
    "0x10",
    "1_000",
    "1e999",
    "{a: 1}",
]
NO_INTEGER = [*NO_NUMBER, "1.5", "1e3", "007", str(2**70), "-1"]
NO_BOOL = ["maybe", "1", "0", "[true]", "{a: 1}", "1.0", "tru"]


def typos(key: str) -> Iterator[str]:
    """Misspellings of a key that are no key."""
    section, _, name = key.rpartition(".")
    changed = (name[:-1], name + name[-1], name[1] + name[0] + name[2:], name + "_X", "X" + name)
    for other in changed:
        if f"{section}.{other}" not in ITEMS and len(other) > 1:
            yield f"{section}.{other}"
    yield f"NOWHERE.{name}"
    yield f"{key}.{name}"


def bad_values(item: Item) -> Iterator[str]:
    """Values that a key does not allow, as YAML."""
    hint, limits = str(item.hint), item.limits
    if "None" not in hint:
        yield from ("null", "~", "")
    if "tuple" in hint:
        yield from ("abc", "[[1]]", "[null]", "[{a: 1}]", "{a: 1}")
        if limits.min_items:
            yield "[]"
        if "int" not in hint:
            yield "3"
        if "str" not in hint:
            yield "[nan]"
        if "bool" not in hint and "str" not in hint:
            yield "[true]"
    elif "bool" in hint:
        yield from NO_BOOL
    elif "int" in hint:
        yield from NO_INTEGER
        yield "[1]"
    elif "float" in hint:
        yield from NO_NUMBER
        yield "[1.0]"
    else:
        yield from ("[a]", "{a: b}", '"a\\tb"')
        if limits.pattern or limits.choices:
            yield '""'
    if limits.choices:
        yield from (limits.choices[0] + "x", limits.choices[-1][1:] + "z", "7")
    if "str" not in hint and "bool" not in hint and "tuple" not in hint:
        yield from outside(item)


def outside(item: Item) -> Iterator[str]:
    """Numbers just outside the limits."""
    limits = item.limits
    yield from (str(low - 1) for low in [limits.low] if low is not None)
    yield from (str(high + 1) for high in [limits.high] if high is not None)
    yield from (str(bound) for bound in (limits.above, limits.below) if bound is not None)
    yield "1e300" if "float" in str(item.hint) and limits.below is None else "99999999999999999999"


MUTATIONS = [
    *(f"{typo}=1" for key in ITEMS for typo in typos(key)),
    *(f"{key}={value}" for key, item in ITEMS.items() for value in bad_values(item)),
    *(f"{section}=1" for section in sections_under(Config) if section),
]


def is_refused(path: Path, override: str) -> bool:
    try:
        c.load(path, [override])
    except InputError as error:
        named = override.partition("=")[0].split(".")
        return any(part in str(error) for part in named)
    return False


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_mutation_is_refused(path: Path) -> None:
    # All of them in the first file; in each of the others another third of them.
    mutations = MUTATIONS[CONFIGS.index(path) % 3 :: 3 if CONFIGS.index(path) else 1]
    assert len(set(mutations)) >= 500
    accepted = [mutation for mutation in mutations if not is_refused(path, mutation)]
    assert accepted == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_repeated_or_misspelt_line_of_a_file_is_refused(path: Path, tmp_path: Path) -> None:
    """Each key line of the shipped text: given twice, in another case too, and misspelt."""
    lines = path.read_text().splitlines()
    copy = tmp_path / path.name
    count = 0
    for number, line in enumerate(lines):
        name, colon, rest = line.partition(":")
        if not colon or line.lstrip().startswith(("#", "-")) or not rest.split("#")[0].strip():
            continue
        for again in (line, f"{name.lower()}:{rest}", f"{name}Z:{rest}"):
            copy.write_text("\n".join([*lines[: number + 1], again, *lines[number + 1 :]]))
            with pytest.raises(InputError) as caught:
                c.load(copy)
            assert f"{copy}:{number + 2}: " in str(caught.value)
            count += 1
    assert count >= 60


def typo_hints() -> tuple[int, int]:
    """(right hints, typos) over one misspelling of every key: the last letter doubled."""
    right = 0
    for key in ITEMS:
        try:
            c.load(CONFIGS[0], [f"{key}{key[-1]}=1"])
        except InputError as error:
            right += f"did you mean {key}?" in str(error)
    return right, len(ITEMS)


def test_a_misspelt_key_is_told_its_right_spelling() -> None:
    right, count = typo_hints()
    assert right == count


def good_values(item: Item) -> Iterator[str]:
    """Values that a key allows by itself, as YAML."""
    limits, hint = item.limits, str(item.hint)
    if "None" in hint:
        yield from ("null", "~")
    if limits.choices:
        for choice in limits.choices:
            yield from (choice, choice.upper(), choice.lower(), f"'{choice}'")
    elif "tuple" in hint:
        return
    elif "bool" in hint:
        yield from ("true", "false", "on", "No")
    elif "int" in hint or "float" in hint:
        yield from (str(low) for low in (limits.low, limits.high) if low is not None)
        yield from (str(bound / 2) for bound in (limits.below,) if bound)
        if (limits.low or 0) <= 1 and limits.below != 1:
            yield "1"
    elif limits.pattern == LOCAL_FOLDER:
        yield from ("off", "OFF", "/tmp/a b", "'/tmp/c'")
    elif "str" in hint:
        yield from ("abc", "'abc'", "a.b-c_1")


# What a value needs beside it to make sense, in every shipped configuration.
GENERATE, NETWORK = "IMAGE_GENERATION.", "TRAINING.NETWORK."
BESIDE = {
    "DATASET.PREPROCESSING.AUGMENT": ["DATASET.PREPROCESSING.AUGMENT_TYPE=flip"],
    "DATASET.PREPROCESSING.AUGMENT_TYPE": ["DATASET.PREPROCESSING.AUGMENT=false"],
    "DATASET.LABEL_KEY": [NETWORK + "NUM_CLASSES=null", GENERATE + "GEN_TASK=random_uncond"],
    "TRAINING.IS_NEW_TRAIN": ["TRAINING.TRAINED_H5=a/run"],
    "TRAINING.INPUT_IMAGE_SIZE": [
        NETWORK + "CHANNEL_MULTIPLIER=[1]",
        NETWORK + "HAS_ATTENTION=[false]",
    ],
    "TRAINING.HYPER_PARAMETERS.EPOCHS": ["TRAINING.HYPER_PARAMETERS.WARMUP_STEPS=null"],
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": ["TRAINING.HYPER_PARAMETERS.WARMUP_STEPS=null"],
    "CLUSTER.NUM_WORKERS": ["TRAINING.HYPER_PARAMETERS.BATCH_SIZE=65536"],
    NETWORK + "BLOCK_SIZE": [
        "TRAINING.INPUT_IMAGE_SIZE=[1024, 2048]",
        NETWORK + "CHANNEL_MULTIPLIER=[1]",
        NETWORK + "HAS_ATTENTION=[false]",
    ],
    NETWORK + "TIMESTEPS": [GENERATE + "NUM_STEPS=null"],
    NETWORK + "NUM_CLASSES": [GENERATE + "GEN_TASK=random_uncond"],
    NETWORK + "FIRST_CHANNEL": [NETWORK + "NORM_GROUPS=1", NETWORK + "NUM_HEADS=1"],
    "EVALUATION.FEATURES": ["EVALUATION.EVERY=1", "EVALUATION.WEIGHTS=w.safetensors"],
    "EVALUATION.BEST": ["EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels"],
    "EVALUATION.PATIENCE": ["EVALUATION.EVERY=1", "EVALUATION.BEST=mean_log10_mse"],
    GENERATE + "FREEZE_CHANNEL": ["TRAINING.INPUT_IMAGE_CHANNEL=2"],
    GENERATE + "REVERSE_STRIDE": [GENERATE + "NUM_STEPS=null"],
    GENERATE + "SAMPLER": [GENERATE + "DDIM_ETA=1.0"],
    GENERATE + "NUM_STEPS": [GENERATE + "SPACING=logsnr"],
    GENERATE + "GUIDE": [GENERATE + "GUIDANCE=2"],
    GENERATE + "GUIDANCE_INTERVAL": [GENERATE + "GUIDANCE=2", GENERATE + "GUIDE=model"],
    GENERATE + "GUIDANCE_RESCALE": [GENERATE + "GUIDANCE=2", GENERATE + "GUIDE=model"],
    GENERATE + "RECOMPUTE_NOISE": [GENERATE + "CLIP_DENOISE=true"],
    GENERATE + "CLASS_LABEL": [NETWORK + "NUM_CLASSES=null", GENERATE + "GEN_TASK=random_uncond"],
    GENERATE + "NEW_IMAGE_SIZE": [
        NETWORK + "CHANNEL_MULTIPLIER=[1]",
        NETWORK + "HAS_ATTENTION=[false]",
    ],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_valid_value_is_refused(path: Path) -> None:
    count, refused = 0, []
    for key, item in ITEMS.items():
        for value in good_values(item):
            try:
                c.load(path, [f"{key}={value}", *BESIDE.get(key, [])])
            except InputError as error:
                refused.append(f"{key}={value}: {error}")
            count += 1
    assert count >= 250
    assert refused == []
