"""State 0 of a run: a function of its config, or of parameters that the config names.

    run.initial empty    the seed says all (`model/initial.py`): every member computes it
    run.initial a name   parameters from elsewhere, in a store beside the states of the run:

    params, in the order of the model | momentum: zeros --> chunks --> manifest --> its digest

The manifest is that of a state of no run, as the digest of the run contains its name. State 0 has
the same values in the run's own layout. The host's directory keeps the store; others fetch it.

Shapes: N values.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.config import RunConfig
from atoll.errors import BadBlobError, ConfigError
from atoll.ids import INITIAL, Digest
from atoll.model.initial import fill_initial_, initial_of
from atoll.model.layout import in_layout_, layout_of
from atoll.model.shapes import num_parameters
from atoll.outer.checkpoint import MANIFEST_FILE, StateStore
from atoll.outer.manifest import manifest_of, parse_manifest
from atoll.outer.saved import read_saved
from atoll.outer.state import PeerState

NO_RUN: Final = Digest("0" * 64)
INITIAL_FOLDER: Final = "initial"  # of the host's directory: where the named parameters are


def save_initial(directory: Path, params_N: NDArray[np.float32]) -> Digest:
    """Put parameters, in the order of the model, into this folder; return what names them.

    Raises:
        RunError: the disk is full.
    """
    state = PeerState.initial(params_N)
    manifest = manifest_of(state, run=NO_RUN)
    StateStore(directory, keep=1).save(state, manifest, now=0.0)
    return manifest.digest


def require_initial(config: RunConfig, directory: Path) -> None:
    """Check that the parameters that the config names, if any, are in the host's directory.

    Raises:
        ConfigError: they are not, or they are none of such a model.
    """
    if not config.initial:
        return
    folder = directory / INITIAL_FOLDER
    hint = 'atoll new --init-from writes both; with initial = "" the seed says how the run begins'
    try:
        manifest = parse_manifest((folder / f"{INITIAL:06}" / MANIFEST_FILE).read_bytes())
    except (OSError, BadBlobError) as error:
        raise ConfigError(f"initial: {folder} cannot be read: {error}", hint=hint) from error
    if manifest.digest != config.initial:
        raise ConfigError(f"initial: what is in {folder} is {manifest.digest[:12]}", hint=hint)
    if manifest.num_values != num_parameters(config.model):
        raise ConfigError(
            f"initial: {folder} has {manifest.num_values} parameters, "
            f"the model {num_parameters(config.model)}",
            hint="let the table [model] be as atoll new --init-from wrote it",
        )


def begin_anew_(state: PeerState, config: RunConfig, store: StateStore | None) -> None:
    """Make it the state before the first round; parameters that it names are in the store.

    Raises:
        DamagedError: the store has not what was saved there.
    """
    layout = layout_of(config)
    if store is not None:
        store.load_(state, round=INITIAL, run=NO_RUN)
        in_layout_(state.params_N, layout)
    else:
        fill_initial_(state.params_N, layout, seed=config.seed)
    state.momentum_N[:] = 0
    state.round = INITIAL


def initial_params(config: RunConfig, directory: Path) -> NDArray[np.float32] | None:
    """Return what a run begins with, as its host's directory has it; None: it is not there.

    Raises:
        DamagedError: it is not what was saved.
    """
    layout = layout_of(config)
    if not config.initial:
        return initial_of(layout, seed=config.seed)
    folder = directory / INITIAL_FOLDER
    if not (folder / f"{INITIAL:06}").is_dir():
        return None
    state, digest = read_saved(folder, INITIAL, run=NO_RUN)
    if digest != config.initial or state.num_values != layout.num_values:
        return None
    in_layout_(state.params_N, layout)
    return state.params_N
