"""Files: loadable strictly, the same bytes for the same content, whole or not at all."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from idfx.core import files
from idfx.core.errors import ExportError, UsageError
from idfx.core.records import Decision, Plan
from idfx.planning import export

SUFFIXES = (".pt", ".safetensors")
PLAN = Plan(
    model="tiny",
    scheme="idinit",
    seed=3,
    options={"tau": 1.0, "conv_order": ("a", "b")},
    shapes={"weight": (4, 4)},
    decisions={"weight": Decision("weight", "eye", {"scale": 1.0}, "square", "one site")},
    kept={"bias": "not a matrix"},
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(state: dict[str, torch.Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    assert sorted(state) == sorted(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and state[name].shape == tensor.shape
        assert torch.equal(state[name], tensor.cpu()), name


def held(dtype: torch.dtype) -> bool:
    """Whether this safetensors has a name for a type: complex numbers came with 0.7."""
    try:
        return bool(safetensors.torch.save({"x": torch.zeros(1, dtype=dtype)}))
    except (KeyError, ValueError, safetensors.SafetensorError):
        return False


class Zoo(nn.Module):
    """One of everything that a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.brief = nn.Linear(3, 5).to(torch.bfloat16)
        self.tied = self.brief
        self.norm = nn.BatchNorm1d(4)
        big = torch.arange(100_000.0)
        for name, value in {
            "view": big[10:22].view(3, 4),
            "again": big[10:22].view(3, 4),
            "columns": torch.arange(12.0).view(3, 4).T,
            "nothing": torch.empty(0, 3),
            "naught": torch.empty(0, dtype=torch.long),
            "scalar": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "waves": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        }.items():
            if not held(value.dtype):
                continue
            self.register_buffer(name, value)
        self.register_buffer("passing", torch.ones(2), persistent=False)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


def resnet18() -> nn.Module:
    import timm

    return timm.create_model("resnet18")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("build", [resnet18, gpt2, Zoo])
def test_file_loads_strictly(build, suffix, tmp_path):
    model = build()
    saved = export.save(model, tmp_path / f"w{suffix}")
    state = load(saved.path)
    assert (saved.bytes, saved.tensors) == (saved.path.stat().st_size, len(model.state_dict()))
    assert_same(state, model)
    assert not any(tensor.requires_grad or tensor.is_cuda for tensor in state.values())
    build().load_state_dict(state, strict=True)
    assert names(tmp_path) == [f"w{suffix}"]


def test_plain_dict_with_ties_kept_and_views_packed(tmp_path):
    path = export.save(Zoo(), tmp_path / "w.pt").path
    state = load(path)
    assert type(state) is dict
    assert path.stat().st_size < 10_000  # "view" lies in a storage of 400 kB
    for first, second in [("brief.weight", "tied.weight"), ("view", "again")]:
        assert state[first].data_ptr() == state[second].data_ptr()
    assert "passing" not in state


def test_safetensors_copies_ties_and_records_them(tmp_path):
    model = gpt2()
    path = export.save(model, tmp_path / "w.safetensors", plan=PLAN, metadata={"note": "mine"}).path
    about = metadata(path)
    assert json.loads(about["ties"]) == {"transformer.wte.weight": ["lm_head.weight"]}
    assert (about["format"], about["scheme"], about["seed"]) == ("pt", "idinit", "3")
    assert json.loads(about["options"]) == {"tau": 1.0, "conv_order": ["a", "b"]}
    assert about["plan_sha256"] == export.digest(PLAN) and about["note"] == "mine"
    assert torch.__version__.startswith(about["torch_version"]) and about["idfx_version"]


def test_safetensors_bytes_are_those_of_the_library(tmp_path):
    model = resnet18()
    ours = export.save(model, tmp_path / "a.safetensors").path
    safetensors.torch.save_file(model.state_dict(), tmp_path / "b.safetensors", {"format": "pt"})

    def data(path: Path) -> tuple[dict[str, object], bytes]:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        del header["__metadata__"]
        return header, content[end:]

    assert data(ours) == data(tmp_path / "b.safetensors")


def test_model_stays_as_it_is(tmp_path):
    model = gpt2().train()
    before = {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    for suffix in SUFFIXES:
        export.save(model, tmp_path / f"w{suffix}")
    assert before == {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    assert model.training and torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wrappers_leave_no_prefix(suffix, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    plain = export.save(model, tmp_path / f"plain{suffix}").path
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        assert sha(export.save(wrapped, tmp_path / f"wrapped{suffix}").path) == sha(plain)
    inside = nn.Sequential(nn.DataParallel(model))  # no wrapper itself: its names are its own
    assert "0.module.0.weight" in load(export.save(inside, tmp_path / f"inside{suffix}").path)


SAME = """
import sys, torch
from torch import nn
from idfx.planning import export
sys.path.insert(0, {tests!r})
from test_export import PLAN, Zoo
torch.manual_seed(0)
for suffix in (".pt", ".safetensors"):
    export.save(Zoo(), sys.argv[1] + suffix, plan=PLAN, metadata={{c: c for c in "zyxwv"}})
"""


def test_same_bytes_in_every_process_and_under_every_name(tmp_path):
    code = SAME.format(tests=str(Path(__file__).parent))
    stems = ["a", "another name", "日本"]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / name], env={**os.environ, "PYTHONHASHSEED": seed})
        for name, seed in zip(stems, "123", strict=True)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    for suffix in SUFFIXES:
        assert len({sha(tmp_path / (name + suffix)) for name in stems}) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_do_not_depend_on_how_storages_are_shared(suffix, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    apart = sha(export.save(model, tmp_path / f"apart{suffix}").path)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    assert sha(export.save(model, tmp_path / f"flat{suffix}").path) == apart


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_repeated_element_is_written_out(suffix, tmp_path):
    model = nn.Module()
    model.register_buffer("wide", torch.ones(1).expand(2, 3))
    state = load(export.save(model, tmp_path / f"w{suffix}").path)
    assert torch.equal(state["wide"], torch.ones(2, 3)) and state["wide"].is_contiguous()


@pytest.mark.cuda
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_bytes_from_a_gpu(suffix, tmp_path):
    model = nn.ModuleList([nn.LSTM(8, 8), Zoo(), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)])
    path = export.save(model, tmp_path / f"cpu{suffix}").path
    assert sha(export.save(model.cuda(), tmp_path / f"cuda{suffix}").path) == sha(path)


def test_digest_reads_the_content_alone():
    # sha256 of the canonical JSON, written out by hand
    text = (
        '{"decisions":{"weight":{"arguments":{"scale":1.0},"evidence":"one site","fill":"eye",'
        '"parameter":"weight","reason":"square"}},"kept":{"bias":"not a matrix"},"model":"tiny","notes":[],'
        '"options":{"conv_order":["a","b"],"tau":1.0},"scheme":"idinit","seed":3,"shapes":{"weight":[4,4]}}'
    )
    assert export.digest(PLAN) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "w.ptth",
            "w.ptth: the suffix is '.ptth'; expected .pt, .pth or .safetensors. Did you mean w.pth?",
        ),
        ("w.bin", "w.bin: the suffix is '.bin'; expected .pt, .pth or .safetensors. Did you mean w.pt?"),
        ("w.PT", "w.PT: the suffix is '.PT'; expected .pt, .pth or .safetensors. Did you mean w.pt?"),
        ("w", "w: there is no suffix; expected .pt, .pth or .safetensors. Did you mean w.pt?"),
        ("d.pt", "d.pt: this is a folder; expected the path of a file. Choose another name."),
        ("pipe.pt", "pipe.pt: this is not a regular file; expected the path of a file. Choose another name."),
        (
            "no/w.pt",
            "no/w.pt: no does not exist; expected an existing folder. Create it (mkdir -p 'no') or choose another.",
        ),
        (
            "file/w.pt",
            "file/w.pt: file is not a folder; expected an existing folder. "
            "Create it (mkdir -p 'file') or choose another.",
        ),
        (
            f"{'n' * 300}.pt",
            f"{'n' * 300}.pt: File name too long; expected a writable folder. "
            "Choose another folder or change its permissions.",
        ),
        (
            "/proc/w.pt",
            "/proc/w.pt: No such file or directory; expected a writable folder. "
            "Choose another folder or change its permissions.",
        ),
    ],
)
def test_unusable_path_is_refused(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.pt").mkdir()
    Path("file").touch()
    os.mkfifo("pipe.pt")
    for refuse in (export.check_path, lambda path: export.save(nn.Linear(1, 1), path)):
        with pytest.raises(UsageError) as caught:
            refuse(path)
        assert str(caught.value) == message
    assert names(tmp_path) == ["d.pt", "file", "pipe.pt"]


def test_usable_path_is_left_alone(tmp_path):
    export.check_path(tmp_path / "w.pt")
    assert not names(tmp_path)


def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(UsageError, match=r"w\.pt: Permission denied; expected a writable folder"):
            export.check_path(tmp_path / "w.pt")
    finally:
        os.seteuid(user)


class Extra(nn.Module):
    def __init__(self, extra: object) -> None:
        super().__init__()
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


def test_extra_state(tmp_path):
    path = tmp_path / "w.pt"
    export.save(Extra({"steps": 3}), path)
    model = Extra(None)
    model.load_state_dict(load(path), strict=True)
    assert model.extra == {"steps": 3}
    with pytest.raises(ExportError, match=r"w.safetensors: _extra_state is a dict; .* Save as .pt$"):
        export.save(Extra({"steps": 3}), tmp_path / "w.safetensors")
    before = path.read_bytes()
    with pytest.raises(ExportError, match=r"w.pt: _extra_state is a Linear; .* Remove it"):
        export.save(Extra(nn.Linear(1, 1)), path)
    assert path.read_bytes() == before and names(tmp_path) == ["w.pt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layer", [nn.LazyLinear(2), nn.Linear(2, 2, device="meta")])
def test_tensor_without_values_is_refused(layer, suffix, tmp_path):
    with pytest.raises(ExportError, match=r"weight has no values yet; .* before saving"):
        export.save(layer, tmp_path / f"w{suffix}")
    assert not names(tmp_path)


def test_type_unknown_to_the_format_is_refused(tmp_path):
    model = nn.Module()
    model.register_buffer("z", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ExportError, match=r"z is a Tensor torch.complex128; .* Save as .pt"):
        export.save(model, tmp_path / "w.safetensors")
    assert_same(load(export.save(model, tmp_path / "w.pt").path), model)


@pytest.fixture(params=["unnamed", "hidden"])
def way(request, monkeypatch):
    """Either way of writing: a file without a name, or, where the system has none, a hidden one."""
    if request.param == "hidden":
        monkeypatch.setattr(files, "_UNNAMED", 0)
    return request.param


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("old", [False, True])
def test_mode_is_that_of_the_umask(way, old, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    if old:
        path.touch(mode=0o600)
    mask = os.umask(0o027)
    try:
        export.save(nn.Linear(2, 2), path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == [path.name]


def test_symbolic_link_is_followed(way, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "w.pt").symlink_to(tmp_path / "real" / "w1.pt")
    for _ in range(2):
        export.save(nn.Linear(2, 2), tmp_path / "w.pt")
        assert (tmp_path / "w.pt").is_symlink() and names(tmp_path / "real") == ["w1.pt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_interrupt_leaves_nothing(call, way, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"w{suffix}"
    export.save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if call == "link" and way == "hidden":
        pytest.skip("no link is made")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path if call == "replace" else os, call, interrupt)
        export.save(nn.Linear(3, 3), path)
    assert path.read_bytes() == before and names(tmp_path) == [path.name]


FULL = """
import os, resource, sys
from torch import nn
from idfx.core import errors, files
from idfx.planning import export
files._UNNAMED = int(sys.argv[2]) and files._UNNAMED
model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
resource.setrlimit(resource.RLIMIT_FSIZE, (3_500_000, 3_500_000))
for suffix in (".pt", ".safetensors"):
    try:
        export.save(model, sys.argv[1] + suffix)
    except errors.ExportError as error:
        print(error)
"""


def test_no_room_for_the_file(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"old")
    for unnamed in "10":
        run = subprocess.run(
            [sys.executable, "-c", FULL, tmp_path / "w", unnamed], capture_output=True, text=True, check=True
        )
        assert run.stdout.splitlines() == [
            f"{tmp_path}/w{suffix}: File too large; expected to write the whole file. Nothing was written. "
            "Free some space, check quota and permissions, or choose another path"
            for suffix in SUFFIXES
        ]
        assert run.stderr == ""
        assert names(tmp_path) == ["w.pt"] and (tmp_path / "w.pt").read_bytes() == b"old"


def test_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a small disk")
    try:
        for suffix in SUFFIXES:
            with pytest.raises(ExportError, match=r"No space left on device; expected to write the whole file"):
                export.save(nn.Linear(1024, 1024), tmp_path / f"w{suffix}")
            assert not names(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


KILLS = """
import os, signal, sys, time, torch
from pathlib import Path
from torch import nn
from idfx.planning import export
torch.set_num_threads(1)
folder, ends = Path(sys.argv[1]), {"killed": 0, "done": 0}
model = nn.Module()
for i in range(12):
    model.register_buffer(f"w{i}", torch.full((512, 1024), float(i)))

def state(path):
    names = os.listdir(folder)
    assert names in ([], [path.name]), names
    return path.read_bytes() if names else None

def child(path, delay, kill):
    pid = os.fork()
    if pid == 0:
        if kill:
            real = getattr(os, kill[0])
            def call(*args, **kwargs):
                if kill[1] == "after":
                    real(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            setattr(os, kill[0], call)
        export.save(model, path)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

for suffix in (".pt", ".safetensors"):
    path = folder / f"w{suffix}"
    start = time.monotonic()
    assert child(path, None, None) == 0
    whole, span = state(path), time.monotonic() - start
    for old in (None, b"old"):
        points = [(span * 1.2 * i / 6, None) for i in range(6)]
        points += [(None, ("fstat", "before")), (None, ("link", "before"))]
        points += [(None, ("link", "after"))] if old is None else [(None, ("fsync", "before"))]
        for delay, kill in points:
            path.unlink(missing_ok=True)
            if old is not None:
                path.write_bytes(old)
            ends["killed" if child(path, delay, kill) else "done"] += 1
            assert state(path) in (old, whole), (suffix, old, delay, kill)
    path.unlink()
print(ends["killed"], ends["done"])
"""


@pytest.mark.skipif(not files._UNNAMED, reason="this system has no unnamed files")
def test_kill_leaves_nothing_or_the_whole_file(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLS, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    killed, done = map(int, run.stdout.split())
    assert killed > 12 and killed + done == 36  # 12 are killed at a chosen call, 24 after some time


def test_import_costs_no_torch():
    code = "import sys, idfx.planning.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
