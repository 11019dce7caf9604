import pytest

pytest.importorskip("mani_skill")


@pytest.fixture(scope="session")
def simulators():
    """Simulators by (task, control mode, cameras), made once: making one and its first picture take seconds."""
    from par_jax.sim.simulator import Simulator

    made = {}

    def get(task, control_mode="pd_joint_pos", cameras=("render",)):
        key = (task, control_mode, cameras)
        if key not in made:
            made[key] = Simulator(task, control_mode, (64, 96), cameras=cameras)
        return made[key]

    yield get
    for simulator in made.values():
        simulator.close()
