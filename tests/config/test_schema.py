"""ddpm.config.schema: limits and their words; generated mistakes are refused, no valid value is."""

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ddpm import config as c
from ddpm.config.schema import Config, json_schema, keys_under, sections_under
from ddpm.errors import InputError
from tests.support.tree import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ITEMS = {
    key: json_schema(sections_under(Config)[key.rpartition(".")[0]])["properties"][
        key.rpartition(".")[2]
    ]
    for key in keys_under(Config)
}

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


def bad_values(schema: dict[str, Any]) -> Iterator[str]:
    """Values that a key does not allow, as YAML."""
    kinds = kinds_of(schema)
    items = (
        kinds.get("array", {}).get("items") or kinds.get("array", {}).get("prefixItems", [{}])[0]
    )
    if "null" not in kinds:
        yield from ("null", "~", "")
    if "array" in kinds:
        yield from ("abc", "[[1]]", "[null]", "[{a: 1}]", "{a: 1}")
        yield from ["[]"] * (kinds["array"].get("minItems", 0) > 0)
        yield from ["3"] * ("integer" not in kinds)
        yield from ["[nan]"] * (items["type"] != "string")
        yield from ["[true]"] * (items["type"] in ("integer", "number"))
    elif "boolean" in kinds:
        yield from NO_BOOL
    elif "integer" in kinds:
        yield from (*NO_INTEGER, "[1]")
    elif "number" in kinds:
        yield from (*NO_NUMBER, "[1.0]")
    else:
        # Plain text may look like anything; quotes are YAML's.
        yield from ("[a]", "{a: b}") if text_of(kinds) not in (None, r"\S") else ()
        yield '"a\\tb"'
        yield from ['""'] * bool(text_of(kinds))
    if choices := kinds.get("string", {}).get("enum"):
        yield from (choices[0] + "x", choices[-1][1:] + "z", "7")
    for kind in {"integer", "number"} & kinds.keys() - {"array"}:
        yield from outside(kinds[kind])


def kinds_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """JSON type -> schema of each of a key's alternatives."""
    return {str(each["type"]): each for each in schema.get("anyOf", [schema])}


def text_of(kinds: dict[str, dict[str, Any]]) -> object:
    """What limits a key's text, if anything."""
    return kinds["string"].get("enum") or kinds["string"].get("pattern")


def outside(limits: dict[str, Any]) -> Iterator[str]:
    """Numbers just outside the limits; every number has one above."""
    yield from (str(limits["minimum"] - 1) for _ in [0] if "minimum" in limits)
    yield from (
        str(limits[name]) for name in ("exclusiveMinimum", "exclusiveMaximum") if name in limits
    )
    yield from ("1e300" if limits["type"] == "number" else "99999999999999999999",)
    if "exclusiveMaximum" not in limits:
        yield str(limits["maximum"] + 1)


MUTATIONS = [
    *(f"{typo}=1" for key in ITEMS for typo in typos(key)),
    *(f"{key}={value}" for key, schema in ITEMS.items() for value in bad_values(schema)),
    *(f"{section}=1" for section in sections_under(Config) if section),
]


def is_refused(path: Path, override: str) -> bool:
    try:
        c.load(path, [override])
    except InputError as error:
        named = override.partition("=")[0].split(".")
        return any(part in str(error) for part in named)
    return False


@pytest.mark.slow
def test_every_mutation_is_refused() -> None:
    assert len(set(MUTATIONS)) >= 1200
    assert [mutation for mutation in MUTATIONS if not is_refused(DIGITS, mutation)] == []


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_misspelt_key_is_told_its_right_spelling() -> None:
    """The last letter doubled."""
    for key in ITEMS:
        with pytest.raises(InputError) as caught:
            c.load(DIGITS, [f"{key}{key[-1]}=1"])
        assert f"did you mean {key}?" in str(caught.value)


def good_values(schema: dict[str, Any]) -> Iterator[str]:
    """Values that a key allows by itself, as YAML."""
    kinds = kinds_of(schema)
    limits = kinds.get("integer") or kinds.get("number") or {}
    if "null" in kinds:
        yield from ("null", "~")
    if choices := kinds.get("string", {}).get("enum"):
        for choice in choices:
            yield from (choice, choice.upper(), choice.lower(), f"'{choice}'")
    elif "array" in kinds:
        return
    elif "boolean" in kinds:
        yield from ("true", "false", "on", "No")
    elif limits:
        bounds = (limits[name] for name in ("minimum", "maximum") if name in limits)
        yield from (str(bound) for bound in bounds if bound != 2**31 - 1)
        yield from (str(limits[name] / 2) for name in ("exclusiveMaximum",) if name in limits)
        if limits.get("minimum", 0) <= 1 and limits.get("exclusiveMaximum") != 1:
            yield "1"
    elif "[oO][fF][fF]" in str(text_of(kinds)):
        yield from ("off", "OFF", "/tmp/a b", "'/tmp/c'")
    else:
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
    GENERATE + "FREEZE_CHANNEL": [
        "TRAINING.INPUT_IMAGE_CHANNEL=2",
        GENERATE + "GEN_TASK=channel_inpaint",
    ],
    GENERATE + "REVERSE_STRIDE": [GENERATE + "NUM_STEPS=null"],
    GENERATE + "SAMPLER": [GENERATE + "DDIM_ETA=1.0"],
    GENERATE + "NUM_STEPS": [GENERATE + "SPACING=logsnr"],
    GENERATE + "GUIDE": [GENERATE + "GUIDANCE=2"],
    GENERATE + "GUIDANCE_INTERVAL": [GENERATE + "GUIDANCE=2", GENERATE + "GUIDE=model"],
    GENERATE + "GUIDANCE_RESCALE": [GENERATE + "GUIDANCE=2", GENERATE + "GUIDE=model"],
    GENERATE + "RECOMPUTE_NOISE": [GENERATE + "CLIP_DENOISE=true"],
    GENERATE + "CLASS_LABEL": [NETWORK + "NUM_CLASSES=null", GENERATE + "GEN_TASK=inpaint"],
    GENERATE + "EXTERNAL_NPZ_INPUT": [GENERATE + "GEN_TASK=inpaint"],
    GENERATE + "STRENGTH": [GENERATE + "GEN_TASK=sdedit"],
    GENERATE + "KNOWN_NOISE": [GENERATE + "GEN_TASK=inpaint"],
    GENERATE + "RESAMPLES": [GENERATE + "GEN_TASK=inpaint"],
    GENERATE + "EXPORT_EVERY": [GENERATE + "EXPORT_INTERM=true"],
    GENERATE + "EXPORT_FORMAT": [GENERATE + "EXPORT_INTERM=true"],
    GENERATE + "NEW_IMAGE_SIZE": [
        NETWORK + "CHANNEL_MULTIPLIER=[1]",
        NETWORK + "HAS_ATTENTION=[false]",
    ],
}


@pytest.mark.slow
def test_no_valid_value_is_refused() -> None:
    count, refused = 0, []
    for key, schema in ITEMS.items():
        for value in good_values(schema):
            try:
                c.load(DIGITS, [f"{key}={value}", *BESIDE.get(key, [])])
            except InputError as error:
                refused.append(f"{key}={value}: {error}")
            count += 1
    assert count >= 250
    assert refused == []


def test_a_section_refuses_bad_values_when_built_by_hand() -> None:
    with pytest.raises(InputError, match='PRED_TYPE is "speed"; allowed: one of noise'):
        c.Training(PRED_TYPE="speed")
    with pytest.raises(InputError, match="EPOCHS is 0"):
        dataclasses.replace(c.HyperParameters(), EPOCHS=0)
    with pytest.raises(InputError, match="EPOCHS is true"):
        c.HyperParameters(EPOCHS=True)


def test_every_key_is_explained_with_default_limits_and_meaning() -> None:
    rows = c.explain().splitlines()[2:]
    assert len(rows) == len(keys_under(Config))
    for key, row in zip(keys_under(Config), rows, strict=True):
        name, default, allowed, meaning = (part.strip() for part in row.strip("|").split(" | "))
        assert name == f"`{key}`"
        assert default and allowed and len(meaning.split()) >= 1 and not meaning.endswith(".")


def test_every_field_is_a_key_or_a_section_in_upper_case() -> None:
    count = len(keys_under(Config)) + len(sections_under(Config)) - 1
    fields = [
        field.name for cls in sections_under(Config).values() for field in dataclasses.fields(cls)
    ]
    assert len(fields) == count
    assert all(name == name.upper() for name in fields)


def test_a_configuration_survives_pickle_and_replace() -> None:
    config = c.load(DIGITS, ["TRAINING.SEED=3"])
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(config)
    training = dataclasses.replace(config.TRAINING, SEED=4)
    assert dataclasses.asdict(training) == {**dataclasses.asdict(config.TRAINING), "SEED": 4}


def test_a_number_has_one_upper_limit() -> None:
    """Of two, pydantic keeps the one of the type: Count is not to be narrowed by le."""
    for key, field in keys_under(Config).items():
        assert sum(hasattr(limit, "le") for limit in field.metadata) <= 1, key


def test_the_json_schema_knows_every_key_with_its_meaning() -> None:
    schema = json_schema()
    assert schema["required"] == ["DATASET"] and not schema["additionalProperties"]
    network = schema["$defs"]["NetworkSection"]["properties"]
    assert network["TIMESTEPS"] == {
        "default": 1000,
        "description": "Timesteps T of the diffusion",
        "maximum": 1000000,
        "minimum": 1,
        "title": "Timesteps",
        "type": "integer",
    }
    assert len(ITEMS) == len(keys_under(Config)) > 100


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_editors_find_no_fault_in_our_configurations(path: Path) -> None:
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named
    schema = json.loads((path.parent / named[1]).read_text())
    assert schema == json.loads(json.dumps(json_schema())), "run `make docs`"
    checks, tree = Draft202012Validator(schema), yaml.safe_load(path.read_text())
    assert list(checks.iter_errors(tree)) == []
    tree["TRAINING"]["SEEED"] = 1
    tree["TRAINING"]["PRED_TYPE"] = "speed"
    assert len(list(checks.iter_errors(tree))) == 2
