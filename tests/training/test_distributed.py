"""Several processes give the result of one; if one fails all end, and training resumes from its checkpoint."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from functools import partial

import numpy as np
import psutil
import pytest
import several
import torch
from helpers import free_port
from processes import START_METHOD
from several import Run
from test_training import CPU, STRONG, VALIDATION, striped

from dfganext.errors import UserError
from dfganext.models import classifier as model
from dfganext.training import classifier, distributed
from dfganext.training.augment import AugmentedImages, EpochLoader
from dfganext.training.distributed import Group

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def launch(folder, **fields) -> dict:
    """The history of training in two real processes.

    They are forked from a server that has imported PyTorch, which takes seconds; the tests of commands start them as users do.
    """
    run = Run(str(folder), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "start_processes", partial(distributed.start_processes, start_method=START_METHOD))
        distributed.run(partial(several.printing_body, run), run.processes, "cpu")
    return torch.load(folder / "history.pt", weights_only=True)


def printed(folder) -> list[dict]:
    """The lines about epochs that the processes of `launch` printed, of the main process first; they print nothing else."""
    texts = [file.read_text() for file in sorted(folder.glob("printed *.log"))]
    assert texts
    return [json.loads(line) for text in texts for line in text.splitlines()]


def failing(folder, **fields) -> str:
    with pytest.raises(UserError) as caught:
        launch(folder, **fields)
    return str(caught.value)


def assert_close(one: dict, two: dict) -> None:
    assert [list(row) for row in one["epochs"]] == [list(row) for row in two["epochs"]]
    for row, other in zip(one["epochs"], two["epochs"], strict=True):
        assert list(row.values()) == pytest.approx(list(other.values()), rel=TOLERANCE)
    assert one["best_epoch"] == two["best_epoch"] and one["best_state"].keys() == two["best_state"].keys()
    for name, value in one["best_state"].items():
        assert (value - two["best_state"][name]).norm() <= TOLERANCE * value.norm(), name


def assert_same(one: dict, two: dict) -> None:
    assert one["epochs"] == two["epochs"] and one["best_epoch"] == two["best_epoch"]
    assert all(torch.equal(value, two["best_state"][name]) for name, value in one["best_state"].items())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict:
    """One process, never stopped."""
    return dataclasses.asdict(several.train(Run(str(tmp_path_factory.mktemp("one")))))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict:
    """Two processes, never stopped."""
    return launch(tmp_path_factory.mktemp("two"))


def test_two_processes_give_the_result_of_one(one_process, two_processes):
    assert_close(one_process, two_processes)


def test_two_processes_imitate_a_teacher(two_processes, tmp_path):
    """Each rank standardises the teacher's maps over its own images, so this is not one process's result; the ranks agree."""
    weights = tmp_path / "teacher.pth"
    torch.save(model.build("test_efficientnet", "ce", 32, seed=3)[0].state_dict(), weights)
    histories = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        histories.append(launch(tmp_path / name, teacher=str(weights), epochs=1))
    first, again = histories
    assert_same(first, again)
    assert first["best_state"].keys() == two_processes["best_state"].keys()
    assert first["epochs"] != two_processes["epochs"][:1]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run whose second process was killed at the start of the second epoch: folder, exit code, output lines and messages."""
    folder = tmp_path_factory.mktemp("killed")
    command = several.command(Run(str(folder), failure="killed"))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return folder, ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def test_one_killed_ends_all_with_one_sentence(killed):
    _, code, lines, messages = killed
    assert code == 1
    assert [(line["rank"], line["epoch"]) for line in lines] == [(0, 1)], "only the main process reports"
    assert not psutil.pid_exists(lines[0]["pid"])
    assert messages == (
        "error: Training stopped, because a process failed (process 1 terminated with signal SIGKILL); "
        "`dvc repro` resumes it after the last complete epoch.\n"
    )


def test_two_processes_resume_with_the_same_bytes(killed, two_processes, tmp_path):
    shutil.copy(killed[0] / "checkpoint.pt", tmp_path)
    assert_same(launch(tmp_path), two_processes)
    assert [line["again"] for line in printed(tmp_path)] == [True, False, False]


def test_one_process_resumes_the_checkpoint_of_two(killed, two_processes, tmp_path):
    shutil.copy(killed[0] / "checkpoint.pt", tmp_path)
    history = dataclasses.asdict(several.train(Run(str(tmp_path))))
    assert history["epochs"][0] == two_processes["epochs"][0]
    assert_close(history, two_processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_all_processes_stop_with_their_parent(tmp_path, number):
    command = several.command(Run(str(tmp_path), epochs=10_000))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # files that are not removed after SIGKILL
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as starter:
        first_line = starter.stdout.readline()
        ranks = [one for one in psutil.Process(starter.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        assert json.loads(first_line)["pid"] in [rank.pid for rank in ranks] and len(ranks) == 2
        ports = [each.laddr.ip for rank in ranks for each in rank.net_connections(kind="inet")]
        assert ports and set(ports) <= {"127.0.0.1", "::1"}, "no port is open to the network"
        starter.send_signal(number)
        messages = starter.communicate(timeout=60)[1]
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    if number == signal.SIGTERM:
        assert starter.returncode == 130 and messages == "stopped: run the same command again to go on\n"


def test_a_user_error_of_a_process_is_raised_unchanged(tmp_path, capfd):
    assert failing(tmp_path, failure="error", epoch=-1) == "artifacts/images/32 is damaged; make it again."
    assert (printed(tmp_path), *capfd.readouterr()) == ([], "", "")


def test_training_that_diverges_gives_one_message(tmp_path, capfd):
    assert failing(tmp_path, lr=1e30).startswith("convnext.lr: training diverged")
    assert {line["rank"] for line in printed(tmp_path)} <= {0} and capfd.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback(tmp_path, capfd):
    message = failing(tmp_path, failure="bug", epoch=-1)
    assert "a process failed (ZeroDivisionError: a bug)" in message
    assert capfd.readouterr().err.count("Traceback") == 1


def test_batch_normalisation_in_several_processes_is_refused_on_cpus(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    network = model.build("test_efficientnet", "ce", 32)[0]
    with pytest.raises(UserError, match="layer normalisation, such as convnext_tiny"):
        Group(0, 2).replicate(network)


@pytest.mark.slow
def test_three_processes_give_the_result_of_one(one_process, tmp_path):
    assert_close(one_process, launch(tmp_path, processes=3))


@pytest.fixture
def settings(shipped):
    return dataclasses.replace(
        shipped.convnext, architecture="test_convnext", size=32, batch_size=15, precision="float32", augment=STRONG
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_same_augmented_images_for_any_number_of_processes(settings, world_size, workers):
    """The shards of all ranks, put together, are the global batches."""
    images = AugmentedImages(striped(46, 0).pixels, striped(46, 0).labels, settings.augment, 5)
    groups = [Group(rank, world_size) for rank in range(world_size)]
    loaders = [EpochLoader(images, np.arange(46), 15, 5, workers, group=group) for group in groups]
    batches = loaders[0].global_batches(3)
    assert [len(rows) for rows in batches] == [15, 15, 15, 1]
    for number, (rows, *shards) in enumerate(zip(batches, *(loader.epoch(3) for loader in loaders), strict=True)):
        counts = [shard.position.stop - shard.position.start for shard in shards]
        expected = [images[3, row] for row in rows]
        found = torch.cat([shard.images[:count] for shard, count in zip(shards, counts, strict=True)])
        assert torch.equal(found, torch.stack([image for image, _ in expected]))
        labels = torch.cat([shard.labels[:count] for shard, count in zip(shards, counts, strict=True)])
        assert labels.tolist() == [label for _, label in expected]
        positions = np.concatenate([np.arange(46)[shard.position] for shard in shards])
        assert positions.tolist() == list(range(15 * number, 15 * number + len(rows)))
        for shard, count in zip(shards, counts, strict=True):
            assert len(shard.images) == max(count, 1) and shard.global_size == len(rows)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_the_mean_of_weighted_gradients_is_the_gradient_of_the_whole_batch(settings, loss):
    """Also where a batch does not divide evenly, or has fewer images than there are processes."""
    task = classifier.ClassifierTask(striped(46, 0), VALIDATION, settings, loss, 5, CPU)

    def gradients(number: int) -> list[torch.Tensor]:
        task.model.zero_grad()
        ((loss, _),) = task.losses(list(task.loader.epoch(0))[number])
        loss.backward()
        return [parameter.grad.clone() for parameter in task.model.parameters()]

    for number in (0, 3):
        task.group = task.loader.group = Group()
        whole = gradients(number)
        shares = []
        for rank in range(4):
            task.group = task.loader.group = Group(rank, 4)
            shares.append(gradients(number))
        for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
            torch.testing.assert_close(sum(parts) / 4, one, rtol=1e-4, atol=1e-6)


def test_shards_are_a_partition():
    for count in (0, 1, 2, 15, 16):
        for size in (1, 2, 3, 7):
            rows = [list(range(count))[Group(rank, size).shard(count)] for rank in range(size)]
            assert [row for shard in rows for row in shard] == list(range(count))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_each_process_and_epoch_has_its_own_seed():
    seeds = [Group(rank, 8).seed(20, epoch) for rank in range(8) for epoch in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert Group(0, 8).seed(20, 3) == Group().seed(20, 3)


def test_the_default_network_draws_no_random_numbers(settings):
    """So the number of processes changes rounding only. Networks with dropout draw random numbers in each process."""
    network, config = model.build("convnext_tiny", "ce", 32)
    images = model.preprocess(torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8), config)
    before = torch.get_rng_state()
    network.train()(images)
    assert torch.equal(before, torch.get_rng_state())


def test_more_processes_than_images_in_a_batch_are_refused(settings):
    with pytest.raises(UserError, match=r"convnext\.processes: 16 processes cannot share batches of 15"):
        dataclasses.replace(settings, processes=16)


def test_processes_with_different_inputs_are_refused(monkeypatch):
    monkeypatch.setattr(Group, "broadcast", lambda self, content: b'{"lr": 1}')
    Group(1, 2).check_same({"lr": 1})
    with pytest.raises(UserError, match="inputs of process 2 of 2 differ from those of the first"):
        Group(1, 2).check_same({"lr": 2})


def test_one_process_is_not_started():
    groups = []
    distributed.run(groups.append, 1, "cpu")
    assert groups == [distributed.SINGLE_PROCESS]


def test_torchrun_and_the_setting_must_agree(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"convnext\.processes is 3, but torchrun started 4"):
        distributed.run(print, 3, "cpu")


def test_each_process_needs_a_cuda_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes on this machine need as many CUDA devices, and PyTorch sees 2"):
        distributed.run(print, 3, "auto")


@pytest.mark.slow
def test_torchrun_of_two_machines(one_process, tmp_path):
    """Two torchrun commands with one process each, as on two machines; torchrun decides the number of processes."""
    command = several.command(Run(str(tmp_path), processes=1))[1:]
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(["torchrun", f"--node-rank={node}", *options, *command], env=environment) for node in (0, 1)
    ]
    assert [node.wait(100) for node in nodes] == [0, 0]
    assert_close(one_process, torch.load(tmp_path / "history.pt", weights_only=True))
