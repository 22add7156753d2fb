"""How are results written as one netCDF 3 file (`jaxsign export`)?"""

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.store.manifest import ARRAYS, replace_file
from jaxsign.store.verify import undamaged
from jaxsign.validation import names
from jaxsign.validation.messages import counted, size_words

if TYPE_CHECKING:
    import xarray as xr

#: Bytes of one variable of a netCDF 3 file: SciPy writes its size as a signed 32-bit number, padded to four.
NETCDF_BYTES = 2**31 - 4
#: Names of netCDF's types, which no variable may have.
TYPES = (
    "byte", "char", "short", "ushort", "int", "uint", "int64", "uint64", "float", "real", "double", "bool", "string",
)  # fmt: skip
#: The global attribute by which a file is known to be an export, and may be replaced by a newer one.
MADE_BY = "jaxsign export"


def export_netcdf(path: Path, file: Path) -> str:
    """Writes results as a netCDF 3 file (64-bit offsets), in one move.

    Integers beyond 32 bits become floats where these hold them exactly; 16-bit floats become 32-bit ones. Names beyond
    ASCII are written as UTF-8, as netCDF demands, although SciPy reads them as Latin-1; the name of a netCDF type, such
    as "double", gets a "_". Each such variable keeps its original name as the attribute `name`. xarray and SciPy hold
    about three times the file in memory while they write it.

    Args:
      path: results directory.
      file: new, or an earlier export.

    Returns:
      A line that says what was written.

    Raises:
      ValueError: if `file` is something else or cannot be written, or the format cannot hold a variable.
      UnusableData: if something in the directory is damaged.
    """
    import xarray as xr

    shown, file = file, Path(os.path.realpath(file))  # the file that a link leads to is replaced, not the link
    if file.exists() and not (file.is_file() and _exported(file)):
        raise ValueError(f"{str(file)!r} is not a file that jaxsign export has made: move it away or give --out FILE")
    ds, checked = undamaged(path)
    # Sorted by name, since zarr lists arrays in any order.
    variables = {str(name): _representable(name, v) for name, v in sorted(ds.drop_encoding().variables.items())}
    coords = {name: variables.pop(name) for name in sorted(map(str, ds.coords))}
    ds = _spelled(xr.Dataset(variables, coords, {**ds.attrs, "made_by": MADE_BY}))
    try:
        with replace_file(file) as temporary:
            unfilled = {name: {"_FillValue": None} for name in ds.variables}  # NaN stays NaN
            ds.to_netcdf(temporary, engine="scipy", format="NETCDF3_64BIT", encoding=unfilled)
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be written: {error.strerror or error}") from None
    partly = f"; {checked.not_run} of {counted(checked.runs, 'run')} not run: status -1" if checked.not_run else ""
    return f"{shown}: {size_words(file.stat().st_size)}, {counted(checked.runs, 'run')}{partly}"


def _spelled(ds: "xr.Dataset") -> "xr.Dataset":
    """A Dataset whose names reach the file in UTF-8, as netCDF demands: SciPy is given their single bytes.

    Raises:
      ValueError: naming the first name that netCDF 3 cannot hold.
    """
    for name, variable in ds.variables.items():
        names.result_name("variable", name)
        for key in variable.attrs:
            names.result_name(f"attribute of {name!r}", key)
    new = {str(name): _spelling(str(name)) for name in ds.variables}
    for name, variable in ds.variables.items():
        known = {} if new[str(name)] == name else {"name": str(name)}
        variable.attrs = {_spelling(key): value for key, value in {**variable.attrs, **known}.items()}
    return ds.rename({name: spelled for name, spelled in new.items() if spelled != name})


def _spelling(name: str) -> str:
    """A name in composed UTF-8, one character a byte, with "_" after it if netCDF has a type of that name."""
    return unicodedata.normalize("NFC", name).encode().decode("latin-1") + ("_" if name in TYPES else "")


def _exported(file: Path) -> bool:
    """Whether a file was made by `export_netcdf`."""
    from scipy.io import netcdf_file

    if not file.is_file():  # reading a pipe would wait for its writer
        return False
    try:
        with netcdf_file(file, "r", mmap=True) as stream:
            return bool(getattr(stream, "made_by", b"") == MADE_BY.encode())
    except Exception:  # anything else than netCDF 3
        return False


def _representable(name: Any, array: "xr.Variable") -> "xr.Variable":
    """A variable with a dtype that netCDF 3 can hold.

    Raises:
      ValueError: naming the variable, if netCDF 3 cannot hold it exactly.
    """
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and width == 2:
        array = array.astype(np.float32)
    elif kind in "iu" and array.dtype not in (np.int8, np.int16, np.int32):
        values = array.values
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low >= -(2**31) and high < 2**31:
            array = array.astype(np.int32)
        elif low >= -(2**53) and high <= 2**53:
            array = array.astype(np.float64)
        else:
            raise ValueError(f"{name} holds integers beyond 2^53, which netCDF 3 cannot hold")
    elif kind not in "fiubOUT":
        raise ValueError(f"{name} is of dtype {array.dtype}, which netCDF 3 cannot hold")
    if array.nbytes > NETCDF_BYTES:
        raise ValueError(
            f"{name} takes {size_words(array.nbytes)}, and a variable of a netCDF 3 file at most "
            f"{size_words(NETCDF_BYTES)}: read {ARRAYS} with xarray.open_zarr instead"
        )
    return array
