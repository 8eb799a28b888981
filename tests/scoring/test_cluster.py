import pytest

from dfganext.scoring import cluster


@pytest.mark.parametrize(
    ("resources", "asked", "workers", "share"),
    [
        ({"CPU": 6.0}, None, 6, 0),
        ({"CPU": 6.0}, 9, 9, 0),
        ({"CPU": 64.0, "GPU": 2.0}, None, 8, 0.25),
        ({"CPU": 3.0, "GPU": 1.0}, None, 3, 1 / 3),
        ({"CPU": 64.0, "GPU": 4.0}, 6, 6, 0.5),
    ],
)
def test_workers_share_gpus(resources, asked, workers, share):
    assert cluster._cluster(resources, asked, shared=False) == cluster.Cluster(workers, share, False)
