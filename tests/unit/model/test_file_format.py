"""Reading a model file runs nothing; writing and reading give back what was written."""

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist.errors import StoreCorrupt, StoreNotFound, UnsafeFile
from scvi_dist.model.file_format import (
    SavedModel,
    read_model_file,
    read_torch_file,
    write_model_file,
)


class Calls:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _payloads(target: Path) -> dict[str, Any]:
    """Objects that would create ``target`` if they were unpickled."""
    command = f"touch {target}"
    return {
        "os.system": Calls(os.system, command),
        "subprocess": Calls(subprocess.call, ["touch", str(target)]),
        "eval": Calls(eval, f"open({str(target)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(target)!r}, 'w')"),
        "getattr": Calls(getattr, "os", "system"),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "numpy.load": Calls(np.load, str(target), None, True),
        "torch.load": Calls(torch.load, str(target)),
        "open": Calls(open, str(target), "w"),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["attribute", "state dict", "key", "in an array", "in a frame"])
@pytest.mark.parametrize("name", _payloads(Path("x")))
def test_a_file_that_names_a_callable_is_refused_and_nothing_runs(
    tmp_path: Path, name: str, place: str, protocol: int
) -> None:
    target = tmp_path / "ran"
    payload = _payloads(target)[name]
    content: dict[str, Any] = {"model_state_dict": OrderedDict(), "var_names": [], "attr_dict": {}}
    if place == "attribute":
        content["attr_dict"]["init_params_"] = [payload]
    elif place == "state dict":
        content["model_state_dict"]["px_r"] = payload
    elif place == "key":
        content[payload] = 1
    elif place == "in an array":
        content["var_names"] = np.array([payload, "g"], dtype=object)
    else:
        content["attr_dict"]["history_"] = pd.DataFrame({"a": [payload]}, dtype=object)
    path = tmp_path / "model.pt"
    torch.save(content, path, pickle_protocol=protocol)

    with pytest.raises(UnsafeFile, match=r"nothing in it ran") as caught:
        read_model_file(path)
    assert not target.exists()
    assert str(path) in str(caught.value)
    # Protocol 2 writes the module under the name that Python 2 had for it.
    assert f".{payload.__reduce__()[0].__name__}, which" in str(caught.value)


def _archive(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(f"model/{name}", content)
    return path


def test_a_pickle_inside_a_storage_stays_bytes(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    payload = pickle.dumps(Calls(os.system, f"touch {target}"))
    payload += b"." * (-len(payload) % 4)
    path = tmp_path / "model.pt"
    torch.save({"a": torch.frombuffer(bytearray(payload), dtype=torch.float32)}, path)
    assert read_torch_file(path)["a"].numpy().tobytes() == payload
    assert not target.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # The opcodes by which a pickle reaches a callable without GLOBAL and REDUCE.
        (b"(S'touch'\nios\nsystem\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"(cos\nsystem\nS'touch'\no.", "os.system"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        # Allowed names must not be used for anything but what they are for.
        (b"ccollections\nOrderedDict\n}S'x'\nI1\nsb.", "sets attributes"),
        (b"]}S'__class__'\nI1\nsb.", "sets attributes"),
        (b"I1\n)R.", "calls a int"),
        (b"ctorch._C._nn\nsoftplus\n(I1\ntR.", "calls a"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cbuiltins.dict\n__init__\n.", "builtins.dict.__init__"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0cdict.__new__\x93.", "dict.__new__"),
    ],
)
def test_no_other_way_to_a_callable_is_open(tmp_path: Path, program: bytes, reason: str) -> None:
    path = _archive(tmp_path / "model.pt", {"data.pkl": program})
    with pytest.raises(UnsafeFile, match=reason):
        read_torch_file(path)


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\nbytes\n(L999999999999L\ntR.",
        b"cnumpy\ndtype\n(S'V8'\ntR.",
        b"cnumpy\ndtype\n(S'f8'\ntR.",
        (
            b"cnumpy._core.multiarray\n_reconstruct\n)R(I1\n(I-1\ntcnumpy\ndtype\n(S'f8'\ntR"
            b"(I3\nS'<'\nNNNtbI00\nS''\ntb."
        ),
        b"]]a",
        b"]I1\nI2\n.",
        b"a.",
        b"",
    ],
)
def test_a_pickle_that_makes_no_sense_is_corrupt(tmp_path: Path, program: bytes) -> None:
    path = _archive(tmp_path / "model.pt", {"data.pkl": program})
    with pytest.raises(StoreCorrupt, match=r"not a readable pickle"):
        read_torch_file(path)


def test_a_tensor_cannot_claim_more_than_its_storage(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(4).expand(1000, 4)}, tmp_path / "expanded.pt")
    with pytest.raises(StoreCorrupt, match="does not lie within"):
        read_torch_file(tmp_path / "expanded.pt")


def test_compressed_repeated_and_truncated_archives_are_refused(tmp_path: Path) -> None:
    bomb = _archive(tmp_path / "b.pt", {"data.pkl": b"N." * 10**6}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFile, match="1 of them compressed"):
        read_torch_file(bomb)
    twice = tmp_path / "twice.pt"
    with zipfile.ZipFile(twice, "w") as file:
        file.writestr("model/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("model/data.pkl", b"I1\n.")
    with pytest.raises(UnsafeFile, match="2 records"):
        read_torch_file(twice)
    whole = tmp_path / "whole.pt"
    torch.save({"t": torch.ones(1000)}, whole)
    for size in (10, 1000, whole.stat().st_size - 30):
        (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:size])
        with pytest.raises(StoreCorrupt, match="cut short"):
            read_torch_file(tmp_path / "cut.pt")


def test_a_damaged_storage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"t": torch.full((1000,), 7.25)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(np.float32(7.25).tobytes() * 8)
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=r"data/0.*damaged"):
        read_torch_file(path)


def test_bare_pickles_and_missing_files_have_their_own_messages(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {target}")))
    with pytest.raises(UnsafeFile, match="not a zip archive"):
        read_model_file(tmp_path / "model.pt")
    assert not target.exists()
    with pytest.raises(StoreNotFound, match=r"model\.pt"):
        read_model_file(tmp_path / "modle.pt")
    torch.save({"something": 1}, tmp_path / "other.pt")
    with pytest.raises(StoreCorrupt, match="something"):
        read_model_file(tmp_path / "other.pt")


def _attributes() -> dict[str, Any]:
    history = pd.DataFrame({"elbo_train": [3.0, 2.0]}, index=pd.Index([0, 1], name="epoch"))
    mixed = pd.DataFrame(
        {"a": [1, 0], "b": [0.5, 1.5], "c": ["x", "y"], "d": [True, False]}, index=["g", "h"]
    )
    registries: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    registries["batch"]["mapping"] = np.array(["b1", "b2", 3, None], dtype=object)
    return {
        "history_": {"elbo_train": history, "object": history.astype(object)},
        "markers_": mixed,
        "registry_": {"field_registries": registries, "version": "1.4.2"},
        "train_indices_": np.arange(5),
        "numbers_": [1, -(2**70), 2.5, 1e300, True, False, None, 255, 65536, -1],
        "arrays_": [
            np.zeros((2, 0)),
            np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
            np.array(["ab", "c"]),
            np.array([[True], [False]]),
            np.float64(1.5),
            np.int64(3),
        ],
        "others_": (
            "t",
            (1,),
            (1, 2),
            (1, 2, 3, 4),
            {"s", 1},
            frozenset([2]),
            b"\x00\xff",
            slice(3),
        ),
        "kwargs_": {
            "var_activation": torch.nn.functional.softplus,
            "activation_fn": torch.nn.LeakyReLU,
        },
    }


def _assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whatever_a_model_holds_comes_back(tmp_path: Path, protocol: int) -> None:
    tensors = {
        f"{dtype}": torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
    } | {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "t": torch.arange(6.0).view(2, 3).T}
    tensors["shared"] = tensors["t"][1:]
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
    content = {"attr_dict": _attributes(), "tensors": tensors}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    back = read_torch_file(tmp_path / "x.pt")
    _assert_same(content["attr_dict"], back["attr_dict"])
    for name, tensor in tensors.items():
        assert back["tensors"][name].dtype == tensor.dtype
        assert torch.equal(back["tensors"][name], tensor.detach())


def test_names_of_older_numpy_and_pandas_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": np.arange(3), "f": pd.DataFrame({"x": [1.0]})}, buffer)
    with zipfile.ZipFile(buffer) as file:
        records = {n.partition("/")[2]: file.read(n) for n in file.namelist()}
    assert b"numpy._core.multiarray" in records["data.pkl"]
    records["data.pkl"] = records["data.pkl"].replace(b"numpy._core", b"numpy.core")
    back = read_torch_file(_archive(tmp_path / "old.pt", records))
    np.testing.assert_array_equal(back["a"], np.arange(3))


def test_writing_and_reading_a_model_is_the_identity(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    saved = SavedModel(
        state_dict=module.state_dict(),
        var_names=np.array(["a", "b", "c"], dtype=object),
        attributes=_attributes(),
    )
    write_model_file(tmp_path / "model.pt", saved)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    back = read_model_file(tmp_path / "model.pt")
    _assert_same(saved.attributes, back.attributes)
    _assert_same(saved.var_names, back.var_names)
    module.load_state_dict(dict(back.state_dict), strict=True)


def test_remote_urls_work(tmp_path: Path) -> None:
    saved = SavedModel(state_dict={"w": torch.ones(2)}, var_names=np.array(["a"]), attributes={})
    write_model_file("memory://models/m.pt", saved)
    assert torch.equal(read_model_file("memory://models/m.pt").state_dict["w"], torch.ones(2))


def test_files_of_every_scvi_tools_model_are_read(shared_data: Path) -> None:
    for folder in sorted(shared_data.glob("scvi_tools_*")):
        saved = read_model_file(folder / "model.pt")
        assert {"init_params_", "registry_", "is_trained_"} <= set(saved.attributes)
        assert (
            len(saved.var_names)
            == saved.attributes["registry_"]["field_registries"]["X"]["state_registry"]["n_vars"]
        )
        assert all(torch.isfinite(t).all() for t in saved.state_dict.values())
