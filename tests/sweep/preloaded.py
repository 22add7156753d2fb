"""What a sweep imports while it runs, for processes that fork: each fork would take seconds to. JAX does not start."""

import importlib_metadata  # noqa: F401
import numcodecs.zstd  # noqa: F401
import test_faults  # noqa: F401
import tqdm  # noqa: F401
import xarray
import zarr  # noqa: F401
from orbax.checkpoint import v1  # noqa: F401

xarray.Dataset(coords={"step": [0]})  # the first one imports dask.array where it is installed
