import pytest

pytest.importorskip("mani_skill")


@pytest.fixture(scope="session")
def simulators():
    """Simulators by (task, control mode), made once: making one and its first picture take seconds."""
    from par_jax.sim.simulator import Simulator

    made = {}

    def get(task, control_mode="pd_joint_pos"):
        if (task, control_mode) not in made:
            made[task, control_mode] = Simulator(task, control_mode, (64, 96))
        return made[task, control_mode]

    yield get
    for simulator in made.values():
        simulator.close()
