"""Which rank a process is, from what launchers really set."""

import pytest

from mllm.environment import expand_nodes, interface_to, rank_variables
from mllm.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "gpu[01-03,7],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_ID": "123456",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def test_torchruns_and_deepspeeds_variables_stand() -> None:
    assert rank_variables(TORCHRUN) == TORCHRUN
    deepspeed = without(TORCHRUN, "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "2"}
    assert rank_variables(deepspeed) == TORCHRUN
    # torchrun inside a SLURM step: one of its ranks, not SLURM's task.
    assert rank_variables(SLURM | TORCHRUN) == TORCHRUN


def test_a_slurm_step_gives_rank_size_place_and_the_first_host() -> None:
    found = rank_variables(SLURM)
    assert found["MASTER_ADDR"] == "gpu01" and 12_000 <= int(found["MASTER_PORT"]) < 32_000
    assert without(found, "MASTER_ADDR", "MASTER_PORT") == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    last = SLURM | {"SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}
    assert rank_variables(last)["LOCAL_WORLD_SIZE"] == "1"
    given = SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert rank_variables(given)["MASTER_ADDR"] == "10.0.0.1"
    assert rank_variables(given)["MASTER_PORT"] == "4000"
    same_job = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert rank_variables(same_job)["MASTER_PORT"] == found["MASTER_PORT"]


def test_a_batch_script_is_one_process_and_not_a_rank_of_many() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "gpu1"}
    assert rank_variables(batch)["WORLD_SIZE"] == "1"
    with pytest.raises(UserError, match="start it by `srun python"):
        rank_variables(batch | {"SLURM_NTASKS": "8"})


def test_mpirun_on_one_node_and_on_several() -> None:
    assert rank_variables(OPENMPI)["MASTER_ADDR"] == "127.0.0.1"
    spread = OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    with pytest.raises(UserError, match="mpirun -x MASTER_ADDR"):
        rank_variables(spread)
    assert rank_variables(spread | {"MASTER_ADDR": "n0"})["RANK"] == "1"


def test_without_a_launcher_it_is_a_world_of_one() -> None:
    found = rank_variables({"PATH": "/bin"})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not"),
        (without(TORCHRUN, "WORLD_SIZE", "LOCAL_RANK"), "WORLD_SIZE, LOCAL_RANK are not"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8 but RANK is not set"),
        (TORCHRUN | {"RANK": "4"}, "RANK is 4 but WORLD_SIZE is 4"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2 but LOCAL_WORLD_SIZE is 2"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE is 8 but WORLD_SIZE is 4"),
        (TORCHRUN | {"RANK": "one"}, "RANK is 'one', not a number"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE two"),
        (without(OPENMPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_variables_that_do_not_fit_are_named_in_one_line(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        rank_variables(environment)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node7", ["node7"]),
        ("a,b-1.example", ["a", "b-1.example"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("n[5]x", ["n5x"]),
    ],
)
def test_slurms_node_lists_are_spelled_out(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n[a-b]", "a b", "n[1],", "n]1["])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        expand_nodes(text)


def test_the_interface_to_an_address_is_named_or_none() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no-such-host.invalid") is None
