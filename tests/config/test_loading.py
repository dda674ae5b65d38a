"""ddpm.config.load: what YAML text and overrides mean, and how mistakes are named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm import config as c
from ddpm.config import loading
from ddpm.config.loading import build, read_text
from ddpm.config.schema import Config, keys_under
from ddpm.errors import InputError
from tests.support.tree import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL = {"DATASET": {"NAME": "tiny", "PATH": "digits"}}

# A file of DDPM v3, every key of it.
V3 = """
DATASET:
  NAME: "my_dataset"
  PATH: "digits"
  LABEL_KEY: "labels"
  PREPROCESSING:
    CROP_SIZE: null
    CROP_TYPE: center
    CROP_POSITION: center
    AUGMENT: false
    AUGMENT_TYPE: null
TRAINING:
  INPUT_IMAGE_SIZE: 256
  INPUT_IMAGE_CHANNEL: 3
  OUTPUT_DIR: "./training_outputs"
  IS_NEW_TRAIN: true
  TRAINED_H5: null
  PRED_TYPE: velocity
  LOSS_FN: MSE
  INLINE_GEN: {ENABLE: true, NUMS: 20, PERIOD: 10, REVERSE_STRIDE: 10}
  HYPER_PARAMETERS:
    EPOCHS: 100
    SAVE_PERIOD: 10
    BATCH_SIZE: 64
    STEPS_PER_EPOCH: null
    LR_TYPE: warmup_cosine
    LEARNING_RATE: 2.0e-4
    WARMUP_STEPS: 1000
  NETWORK:
    SCHEDULER: cosine
    TIMESTEPS: 1000
    NUM_RES_BLOCKS: 2
    BLOCK_SIZE: 1
    NORM_GROUPS: 8
    FIRST_CHANNEL: 128
    CHANNEL_MULTIPLIER: [1, 2, 4, 8]
    HAS_ATTENTION: [false, false, true, true]
    NUM_HEADS: 1
    TIME_EMB_DIM: 128
    DROPOUT_RATE: 0.1
    KERNEL_SIZE: 3
    USE_CROSS_ATTENTION: false
    NUM_CLASSES: null
    CLASS_EMB_DIM: null
IMAGE_GENERATION:
  MODEL_PATH: ""
  GEN_TASK: random_uncond
  NUM_GEN_IMAGES: 20
  EXTERNAL_NPZ_INPUT: null
  CLASS_LABEL: null
  FREEZE_CHANNEL: null
  REVERSE_STRIDE: 10
  DDIM_ETA: 1.0
  EXPORT_INTERM: false
  GEN_SAVE_DIR: null
  RANDOM_SEED: null
  CLIP_DENOISE: false
  NEW_IMAGE_SIZE: null
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "test.yaml"
    path.write_text(text)
    return path


def small(*overrides: str) -> Config:
    """The smallest configuration with overrides."""
    return c.load(ROOT / "configs" / "digits.yaml", overrides)


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        c.load(path, overrides)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def problem(folder: Path, text: str) -> str:
    """The one problem of a file whose DATASET is fine."""
    (line,) = problems(write(folder, "DATASET: {NAME: tiny, PATH: digits}\n" + text))
    return line


def test_a_v3_file_loads_unchanged_and_differs_from_defaults_only_in_its_strides(
    tmp_path: Path,
) -> None:
    config = c.load(write(tmp_path, V3))
    assert c.identifying(config) == {
        "DATASET.NAME": "my_dataset",
        "TRAINING.INLINE_GEN.REVERSE_STRIDE": 10,
        "IMAGE_GENERATION.REVERSE_STRIDE": 10,
    }


def test_v3_in_lower_case_is_the_same_configuration(tmp_path: Path) -> None:
    lower = write(tmp_path, V3.lower())
    assert c.load(lower) == c.load(write(tmp_path, V3))


@pytest.mark.slow
@given(
    st.floats(min_value=1e-12, max_value=1.0, exclude_min=True),
    st.integers(min_value=0, max_value=2**63 - 1),
    st.sampled_from(["on", "null", "007", "1e3", "1:30", "a b", "#x", "y: z", "'q'", "~", "ä"]),
)
def test_any_value_survives_yaml_to_the_last_bit(rate: float, seed: int, text: str) -> None:
    plain = {
        "DATASET": {"NAME": "tiny", "PATH": text},
        "TRAINING": {"SEED": seed, "HYPER_PARAMETERS": {"LEARNING_RATE": rate}},
    }
    config = c.from_dict(plain)
    assert build(read_text(c.to_yaml(config), "again")).config == config
    assert config.DATASET.PATH == text


@pytest.mark.parametrize("name", ["on", "off", "007", "1e5", "1.0", "2024-01-02", "yes", "0x10"])
def test_text_stays_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"DATASET: {{NAME: {name}, PATH: digits}}")
    assert c.load(path).DATASET.NAME == name
    assert c.load(path, [f"dataset.name={name}"]).DATASET.NAME == name


@pytest.mark.parametrize(
    "text",
    ["a/run #3", "a: b", "%x", "*.npz", "[1", "{a}", "- x", "!!t", "@x", "on", "a,b", "&a"],
)
def test_an_override_of_text_is_what_the_shell_gave(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "DATASET: {NAME: a, PATH: digits, LABEL_KEY: x}")
    assert c.load(path, [f"DATASET.PATH={text}"]).DATASET.PATH == text
    assert c.load(path, [f"DATASET.LABEL_KEY={text}"]).DATASET.LABEL_KEY == text
    assert c.load(path, ["DATASET.LABEL_KEY='null'"]).DATASET.LABEL_KEY == "null"
    assert c.load(path, ["DATASET.LABEL_KEY=null"]).DATASET.LABEL_KEY is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~/pictures", f"~ is not replaced here, write {Path.home()}/pictures"),
        ("$SCRATCH/x", "$NAME is not replaced here"),
        ("a/$NOWHERE/x", "$NAME is not replaced here"),
    ],
    ids=["~", "$", "a/$"],  # a home differs from worker to worker
)
def test_names_of_the_shell_in_paths_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, f"DATASET: {{NAME: a, PATH: '{text}'}}")
    for call in (lambda: c.load(path), lambda: c.load(path, [f"TRAINING.OUTPUT_DIR={text}"])):
        with pytest.raises(InputError, match=re.escape(words)):
            call()
    assert c.load(path, ["DATASET.PATH=a~b$"]).DATASET.PATH == "a~b$"


def test_no_message_shows_what_stands_for_no_default(tmp_path: Path) -> None:
    path = write(tmp_path, "DATASET: {NAME: a, PATH: digits}")
    for key in keys_under(Config):
        for value in ("[[[1]]]", "{}", "null"):
            try:
                c.load(path, [f"{key}={value}"])
            except InputError as error:
                assert "MISSING" not in str(error) and "Undefined" not in str(error)


def test_the_file_of_a_sweep_is_named_with_its_command(tmp_path: Path) -> None:
    path = write(tmp_path, "BASE: x.yaml\nGRID: {}")
    with pytest.raises(InputError, match=rf"is a sweep; `ddpm sweep {path}`"):
        c.load(path)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "+1E-4", "'1e-4'", ".0001"])
def test_every_spelling_of_a_number_is_a_number(text: str) -> None:
    config = small(f"TRAINING.HYPER_PARAMETERS.LEARNING_RATE={text}")
    assert config.TRAINING.HYPER_PARAMETERS.LEARNING_RATE == 1e-4


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "ON"])
def test_every_spelling_of_true_is_true(text: str) -> None:
    assert small(f"TRAINING.COMPILE={text}").TRAINING.COMPILE is True


def test_enumerated_values_are_kept_in_their_canonical_case() -> None:
    config = small("TRAINING.LOSS_FN=mae", "training.pred_type=IMAGE")
    assert (config.TRAINING.LOSS_FN, config.TRAINING.PRED_TYPE) == ("MAE", "image")


def test_overrides_of_lists_null_and_quotes() -> None:
    config = small(
        "TRAINING.NETWORK.CHANNEL_MULTIPLIER=[1, 3]",
        "DATASET.LABEL_KEY='null'",
        "TRAINING.CLIP_NORM=null",
        "IMAGE_GENERATION.CLASS_LABEL=[3,1]",
        "TRAINING.INPUT_IMAGE_SIZE=[8, 10]",
    )
    assert config.TRAINING.NETWORK.CHANNEL_MULTIPLIER == (1, 3)
    assert config.DATASET.LABEL_KEY == "null"
    assert config.TRAINING.CLIP_NORM is None
    assert config.IMAGE_GENERATION.CLASS_LABEL == (3, 1)
    assert c.image_shape(config) == (1, 8, 10)


def test_a_lower_case_override_makes_no_second_tree(tmp_path: Path) -> None:
    config = c.load(write(tmp_path, V3), ["training.network.timesteps=250"])
    assert config.TRAINING.NETWORK.TIMESTEPS == 250


def test_references_are_followed_whatever_they_lead_to() -> None:
    config = small(
        "TRAINING.HYPER_PARAMETERS.EPOCHS=40",
        "EVALUATION.EVERY=${TRAINING.HYPER_PARAMETERS.EPOCHS}",
        "EVALUATION.SEED=${training.seed}",
        "DATASET.NAME=run-${TRAINING.NETWORK.TIMESTEPS}",
        "TRAINING.NETWORK.HAS_ATTENTION=[false, '${TRAINING.COMPILE}']",
    )
    assert (config.EVALUATION.EVERY, config.EVALUATION.SEED) == (40, 0)
    assert config.DATASET.NAME == "run-1000"
    assert config.TRAINING.NETWORK.HAS_ATTENTION == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:CANARY}",
        "${oc.env:HOME,x}",
        "a${oc.decode:1}",
        "${oc.dict.keys:TRAINING}",
        "${NOWHERE.AT.ALL}",
        "${DATASET.NAME}",
        "${TRAINING}",
    ],
)
def test_the_environment_and_dead_references_are_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-in-the-coal-mine")
    lines = problems(CONFIGS[0], f"DATASET.NAME={text}")
    assert len(lines) == 1
    assert lines[0].startswith("command line: DATASET.NAME is ${") or "a${" in lines[0]
    assert "canary-in" not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TRAINING: {SEED: !!python/object:os.system 1}", "test.yaml:2: TRAINING.SEED has the tag"),
        ("TRAINING: {SEED: !env HOME}", "TRAINING.SEED has the tag !env; give a plain value"),
        ("TRAINING: {_TARGET_: os.system}", "TRAINING._TARGET_ is no key"),
        ("TRAINING: &a\n  <<: {SEED: 1}\n", "test.yaml:3: merge keys"),
        ("TRAINING:\n  SEED: 1\n  seed: 2\n", "test.yaml:4: TRAINING.SEED is given twice, first"),
        ("TRAINING:\n  SEED: 1\n  SEED: 1\n", "TRAINING.SEED is given twice"),
        ("TRAINING: {SEED: [1}", "test.yaml:2: not YAML"),
        ("TRAINING: [1, 2]", "test.yaml:2: TRAINING is [1, 2] but TRAINING is a section"),
        ("TRAINING: {SEED: {A: 1}}", "TRAINING.SEED is a section; give a value, not keys"),
        ("TRAINING:\n  SEED: ???", "TRAINING.SEED is ???; allowed: an integer from 0"),
        ("TRANING: {SEED: 1}", "test.yaml:2: TRANING is no key; did you mean TRAINING?"),
        ("BATCH_SIZE: 3", "did you mean TRAINING.HYPER_PARAMETERS.BATCH_SIZE?"),
        ("TRAINING:\n  EPOCHS: 3", "test.yaml:3: TRAINING.EPOCHS is no key; did you mean "),
        ("TRAINING:\n  PRED_TYPE: veloctiy", "test.yaml:3: TRAINING.PRED_TYPE is veloctiy; "
         "allowed: one of noise, image, velocity, edm, flow; did you mean velocity?"),
        ("TRAINING: {SEED: 1180591620717411303424}", "allowed: an integer from 0 to"),
        ("TRAINING: {NETWORK: {TIMESTEPS: 1:30}}", "TIMESTEPS is 1:30; allowed: an integer from 1"),
        ("TRAINING: {NETWORK: {TIMESTEPS: 0}}", "from 1 to 1000000; the default is 1000"),
        ("TRAINING: {MIN_SNR_GAMMA: 0}", "MIN_SNR_GAMMA is 0; allowed: a finite number above 0"),
        ("TRAINING: {EMA_DECAYS: [0.9, 0.9]}", "EMA_DECAYS is [0.9, 0.9]; allowed: a non-empty"),
        ("TRAINING: {EMA_DECAYS: [1.0]}", "EMA_DECAYS is [1.0]; allowed: a non-empty list"),
        ("WANDB: {PROJECT: ../up}", "PROJECT is ../up; allowed: a name of at most 64 letters"),
        ("WANDB: {TAGS: [a b]}", "WANDB.TAGS is [a b]; allowed: a list of values, each a name"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_the_way_out(
    tmp_path: Path, text: str, words: str
) -> None:
    assert words in problem(tmp_path, text)


@pytest.mark.slow
def test_an_alias_bomb_is_defused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (line,) = problems(write(tmp_path, "\n".join(lines)))
    assert "too many or too deeply nested" in line


def test_an_alias_of_itself_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    for text in ("TRAINING: &a [*a]", "TRAINING: " + "[" * 25 + "]" * 25):
        (line,) = problems(write(tmp_path, text))
        assert "nested" in line or "not YAML" in line


@pytest.mark.slow
@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_nesting_that_would_end_the_interpreter_is_refused(tmp_path: Path, opening: str) -> None:
    """libyaml composes recursively: 30,000 levels overflow the stack of the process."""
    text = "TRAINING:\n  " + opening * 30_000
    code = "import sys; from ddpm.config import load, read_yaml; {}(sys.argv[1])"
    for reader in ("load", "read_yaml"):
        command = [sys.executable, "-c", code.format(reader), str(write(tmp_path, text))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "test.yaml:2: too many or too deeply nested" in done.stderr


def test_a_file_of_another_version_is_read_as_far_as_its_keys_are_known(tmp_path: Path) -> None:
    text = "training: {SEED: 7, EMA_DECAYS: [0.9], LATER: 8, network: {SCHEDULER: Cosine}}"
    assert c.read_yaml(write(tmp_path, text)) == {
        "TRAINING.SEED": 7,
        "TRAINING.EMA_DECAYS": [0.9],
        "TRAINING.LATER": "8",
        "TRAINING.NETWORK.SCHEDULER": "cosine",
    }


def test_a_key_that_has_gone_is_refused_unless_it_says_nothing(tmp_path: Path) -> None:
    """Every run's training_config.yaml names every key of its time."""
    gone = "IMAGE_GENERATION:\n  DYNAMIC_THRESHOLD: {}\n  BETWEEN: null\n"
    small = "DATASET: {NAME: tiny, PATH: digits}\n"
    assert c.load(write(tmp_path, small + gone.format("null"))) == c.from_dict(SMALL)
    assert "DYNAMIC_THRESHOLD is no key" in problem(tmp_path, gone.format(0.9))
    assert "SAMPLER is analytic; allowed" in problem(
        tmp_path, "IMAGE_GENERATION: {SAMPLER: analytic}"
    )
    assert "interpolate; allowed" in problem(tmp_path, "IMAGE_GENERATION: {GEN_TASK: interpolate}")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in problems(tmp_path / "absent.yaml")[0]
    assert "is a folder" in problems(tmp_path)[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00bad")
    assert "not UTF-8" in problems(tmp_path / "binary.yaml")[0]
    (tmp_path / "huge.yaml").write_text("#" * 1_000_001)
    assert "larger than" in problems(tmp_path / "huge.yaml")[0]
    assert "holds no sections" in problems(write(tmp_path, "[1, 2]"))[0]


def test_an_empty_file_lacks_exactly_the_required_keys(tmp_path: Path) -> None:
    lines = problems(write(tmp_path, ""))
    assert [line.split(": ")[1].split(" is")[0] for line in lines] == [
        "DATASET.NAME",
        "DATASET.PATH",
    ]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, V3.replace("EPOCHS", "EPOCS").replace("NUM_HEADS: 1", "NUM_HEADS: 3"))
    overrides = [
        "TRAINING.PRED_TYPE=velocty",
        "TRAINING.HYPER_PARAMETERS.LEARNING_RATE=nan",
        "TRAINING.SEED=-1",
        "TRAINING.NETWORK.TIMESTEPS=5",
        "NONSENSE=1",
        "no equals sign",
        "IMAGE_GENERATION.DDIM_ETA=2",
        "TRAINING.SEED=1",
    ]
    lines = problems(path, *overrides)
    expected = (
        "EPOCS", "NUM_HEADS is 3", "velocty", "LEARNING_RATE is nan", "SEED is -1", "NONSENSE",
        "INLINE_GEN.REVERSE_STRIDE is 10", "GENERATION.REVERSE_STRIDE is 10", "no equals sign",
        "DDIM_ETA is 2", "SEED is given twice",
    )  # fmt: skip
    for words in expected:
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == len(expected)
    assert all(line.startswith(("command line: ", f"{path}:")) for line in lines)


def test_from_dict_names_its_source() -> None:
    with pytest.raises(InputError, match=r"^run 7: TRAINING.SEED is \"x\"; allowed"):
        c.from_dict({**SMALL, "TRAINING": {"SEED": "x"}}, source="run 7")
    with pytest.raises(InputError, match="TRAINING.SEED is given twice"):
        c.from_dict({**SMALL, "TRAINING": {"SEED": 1, "seed": 2}})


@pytest.mark.slow
def test_loading_is_fast_and_imports_no_heavy_package() -> None:
    code = (
        "import sys; from ddpm.config import load; from ddpm.sweep import load_sweep;"
        "load('configs/digits.yaml'); load_sweep('sweeps/pred_types.yaml');"
        "heavy = {'torch', 'numpy', 'ray', 'webdataset', 'sklearn', 'wandb', 'PIL'};"
        "print(*heavy & set(sys.modules))"
    )
    before = sum(os.times()[2:4])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    cpu_seconds = sum(os.times()[2:4]) - before
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert cpu_seconds < 1.0


@pytest.mark.parametrize("word", ["epsilon", "eps", "noise", "NOISE", "Epsilon"])
def test_a_word_of_the_field_is_the_same_run(word: str, tmp_path: Path) -> None:
    ours = loading.load(ROOT / "configs" / "digits.yaml", ["TRAINING.PRED_TYPE=noise"])
    path = tmp_path / "field.yaml"
    text = (ROOT / "configs" / "digits.yaml").read_text()
    path.write_text(re.sub(r"PRED_TYPE: \w+", f"PRED_TYPE: {word}", text))
    for found in (
        loading.load(path),
        loading.load(ROOT / "configs" / "digits.yaml", [f"prediction_type={word}"]),
        loading.load(ROOT / "configs" / "digits.yaml", [f"TRAINING.PRED_TYPE={word}"]),
    ):
        assert found == ours and c.config_sha256(found) == c.config_sha256(ours)


def test_words_of_the_field_are_read_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loading._say.cache_clear()
    path = tmp_path / "field.yaml"
    path.write_text(
        "DATASET: {NAME: d, PATH: digits}\n"
        "TRAINING: {PREDICTION_TYPE: v_prediction, CLASS_DROPOUT_PROB: 0.3, LOSS_SPACE: x0,\n"
        "  NETWORK: {NUM_CLASSES: 3}}\n"
        "IMAGE_GENERATION: {cfg_scale: 3, num_inference_steps: 7, GEN_TASK: class_cond}\n"
        "NUM_TRAIN_TIMESTEPS: 40\n"
    )
    for _ in range(2):
        found = loading.load(path, ["ETA=0.5"])
    training, generation = found.TRAINING, found.IMAGE_GENERATION
    assert (training.PRED_TYPE, training.LABEL_DROP) == ("velocity", 0.3)
    assert (training.LOSS_SPACE, training.NETWORK.TIMESTEPS) == ("image", 40)
    assert (generation.GUIDANCE, generation.NUM_STEPS, generation.DDIM_ETA) == (3, 7, 0.5)
    assert sorted(line.partition(" (")[0] for line in caplog.messages) == [
        "CFG_SCALE is called IMAGE_GENERATION.GUIDANCE here",
        "CLASS_DROPOUT_PROB is called TRAINING.LABEL_DROP here",
        "ETA is called IMAGE_GENERATION.DDIM_ETA here",
        "NUM_INFERENCE_STEPS is called IMAGE_GENERATION.NUM_STEPS here",
        "NUM_TRAIN_TIMESTEPS is called TRAINING.NETWORK.TIMESTEPS here",
        "PREDICTION_TYPE is called TRAINING.PRED_TYPE here",
        "v_prediction is called velocity here",
        "x0 is called image here",
    ]
    # the command line wins over the file, in whatever words
    assert loading.load(path, ["IMAGE_GENERATION.GUIDANCE=2"]).IMAGE_GENERATION.GUIDANCE == 2
    path.write_text(path.read_text().replace("GEN_TASK", "guidance: 2, GEN_TASK"))
    with pytest.raises(InputError) as caught:
        loading.load(path)
    assert caught.value.problems == (
        f"{path}:4: IMAGE_GENERATION.CFG_SCALE is IMAGE_GENERATION.GUIDANCE, which is given too; "
        "keep one",
    )
    with pytest.raises(InputError, match="IMAGE_GENERATION.SAMPLER is sample; allowed: one of"):
        loading.load(ROOT / "configs" / "digits.yaml", ["IMAGE_GENERATION.SAMPLER=sample"])
