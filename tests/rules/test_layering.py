"""The floors of the house: imports only go down, and a foreign framework stays in its adapter.

Read from the source with `ast`, imports inside functions included. A new module must be given its
floor in FLOORS.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ddpm

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up. A name stands for its module, or for a package and all that is in it.
FLOORS = (
    "errors allocation batch_script",
    "noise schedule families",
    "diffusion sampling samplers spacing estimate method guidance gaussian_walk "
    "initialization layers levels unet unet_summary",
    "values options schema quality_schema evaluation_schema sampler_schema task_schema rules "
    "network_rules run_rules sampler_rules reading references building config",
    # data: shards and what they are made from
    "dataset shards arraychecks arrayfiles arraysources images imagebar imagefolder index "
    "indexing order packing preprocess source sources stage_folder stage_notes staging store "
    "tarheader tarscan "
    # state: what is kept, how it is written, how workers share it
    "checkpoint manifest durable lock storage spans units distributed ema ema_profile post_hoc_ema "
    "gradients objective optimizer train_state measures quantiles best memory metrics_log pictures "
    "provenance run_log run_names grid ledger sweep tune space comparable "
    # distances between sets of features
    "estimates moments fid kid kernel_means manifold memorisation squared_distance tensor_files "
    # what a run costs, what its samples are worth: as files
    "cost quality_file numerics",
    "trainer train_step evaluate validation bits_per_dim ema_snapshots ema_curve "
    "reference_lines model rundir run_config run_claim worker progress profile "
    "doctor status run_status status_table job_states groups job_list slurm_queue "
    "mirrored wandb_server "
    "generate image_generator film loaded weights request request_rules x0_variance base_images "
    "rungs population budget cost_forecast "
    "slots tasks starting startup workers probe prediction job_folder series series_plan "
    "series_draw series_check series_export series_status draws wish "
    "forecast forecast_page skip_prefix "
    # samples measured: extractors, what is kept of images, the real side, the numbers
    "features classifier sample_statistics class_measures real_data reference_statistics "
    "classifier_cost sample_sources sample_validation sample_measures sample_evaluation "
    "sample_table sample_quality quality_keeper",
    "adapters report published",
    "launch",
)
# The network stands beside the mathematics of diffusion, on the random numbers alone.
WING = {"initialization", "layers", "levels", "unet", "unet_summary"}
WING_MAY_IMPORT = WING | {"errors", "noise"}

CORE = (
    "torch numpy scipy omegaconf yaml webdataset PIL safetensors sklearn rich matplotlib psutil "
    "pyarrow".split()
)
FRAMEWORKS = "ray optuna wandb wandb_workspaces submitit diffusers h5py torch_fidelity".split()


def module_name(path: Path) -> str:
    """Dotted name of a source file: ddpm/report/page.py -> ddpm.report.page."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for top in ("ddpm", "launch")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imported_names(tree: ast.AST, own_package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a tree, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = own_package.split(".")[: len(own_package.split(".")) + 1 - node.level]
            base = ".".join([*parents, node.module or ""]).strip(".") if node.level else node.module
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def resolve(name: str) -> str:
    """The module of ours that an imported name lives in; `from ddpm import UNet` is ddpm.diffusion.unet."""
    top, _, rest = name.partition(".")
    if top == "ddpm" and rest in ddpm._HOME and name not in MODULES:
        return f"ddpm.{ddpm._HOME[rest]}"
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def imports_of(module: str, source: str | None = None) -> list[tuple[int, str]]:
    """(line, imported name) of one module, names of ours resolved to their module."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text() if source is None else source, filename=str(path))
    found = imported_names(tree, package)
    return [(line, resolve(name)) for line, name in found]


def room(module: str) -> str:
    """ddpm.report.page -> report; launch.train -> launch; ddpm.diffusion.unet -> unet."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "ddpm" else top


def floor_of(module: str) -> int:
    """Number of the floor from the bottom; `ddpm` itself, with its lazy names, is below all."""
    if module == "ddpm":
        return -1
    for floor, names in enumerate(FLOORS):
        if room(module) in names.split():
            return floor
    raise LookupError(
        f"{module} has no floor: add {room(module)!r} to FLOORS in {Path(__file__).name}"
    )


def violations(module: str, source: str | None = None) -> list[str]:
    """One line for each import of `module` that goes up, or leaves the network's wing."""
    bad = []
    for line, name in imports_of(module, source):
        if name.partition(".")[0] not in ("ddpm", "launch"):
            continue
        if floor_of(name) > floor_of(module):
            bad.append(f"{module}:{line} imports {name}, which is on a floor above it")
        if room(module) in WING and name != "ddpm" and room(name) not in WING_MAY_IMPORT:
            bad.append(
                f"{module}:{line} imports {name}; the network may import {sorted(WING_MAY_IMPORT)}"
            )
        if (
            room(module) not in WING
            and room(name) in WING
            and floor_of(module) == floor_of("ddpm.diffusion.unet")
        ):
            bad.append(
                f"{module}:{line} imports {name}; the mathematics takes any callable as a network"
            )
    return bad


def foreign(module: str) -> list[tuple[int, str]]:
    """(line, top-level package) of the third-party packages a module imports."""
    tops = [(line, name.partition(".")[0]) for line, name in imports_of(module)]
    return [
        (line, top) for line, top in tops if top not in {*sys.stdlib_module_names, "ddpm", "launch"}
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str) -> None:
    assert not violations(module)


def test_every_module_has_exactly_one_floor() -> None:
    names = " ".join(FLOORS).split()
    assert len(names) == len(set(names))
    for module in MODULES:
        floor_of(module)


def test_every_floor_names_modules_that_exist() -> None:
    missing = set(" ".join(FLOORS).split()) - {room(module) for module in MODULES}
    assert not missing, f"FLOORS names {sorted(missing)}, which are not there"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        module: {name for _, name in imports_of(module) if name in MODULES} for module in MODULES
    }
    try:
        TopologicalSorter({m: names - {m, "ddpm"} for m, names in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"imports go round: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("ddpm.adapters")])
def test_a_foreign_framework_stays_in_its_adapter(module: str) -> None:
    strangers = [
        f"{module}:{line} imports {top}" for line, top in foreign(module) if top not in CORE
    ]
    assert not strangers


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ddpm.adapters")])
def test_adapters_import_known_frameworks_only(module: str) -> None:
    assert not [top for _, top in foreign(module) if top not in CORE + FRAMEWORKS]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ddpm.errors", "import ddpm.config"),
        ("ddpm.errors", "def f():\n    from ddpm import config"),
        ("ddpm.errors", "def f():\n    from .adapters import ray_train"),
        ("ddpm.errors", "from ddpm import UNet"),
        ("ddpm.diffusion.unet", "from ddpm import NoiseSchedule"),
        ("ddpm.diffusion.unet", "import ddpm.diffusion.schedule"),
        ("ddpm.training.trainer", "if True:\n    import launch"),
    ],
)
def test_an_import_that_goes_up_is_seen(module: str, source: str) -> None:
    assert violations(module, source)


def test_a_module_without_a_floor_is_refused() -> None:
    with pytest.raises(LookupError, match="ddpm.attic has no floor: add 'attic' to FLOORS"):
        floor_of("ddpm.attic")
