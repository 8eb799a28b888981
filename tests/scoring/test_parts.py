import numpy as np

from dfganext import inputs, stores
from dfganext.inputs import Found
from dfganext.scoring.parts import Plan
from dfganext.scoring.rows import Scored, digests_of


def plan_of(paths, done=(), part_images=4):
    told = Scored(np.sort(digests_of(list(done))), np.zeros(len(done), bool))
    listing = stores.Listing("in", iter([Found(path, 1) for path in paths]), inputs.read, remote=False)
    plan = Plan(listing, told, part_images)
    return plan, list(plan)


def test_parts_are_the_same_however_much_is_done():
    paths = [f"/in/{index:02d}.png" for index in range(18)]
    plan, parts = plan_of(paths)
    assert [image.path for part in parts for image in part.images] == paths
    assert [len(part.images) for part in parts] == [4, 4, 4, 4, 2]
    assert len({part.name for part in parts}) == 5
    assert (plan.total, plan.before) == (18, 0)
    for finished in ({0, 1}, {1, 3}, {4}, {0, 1, 2, 3, 4}):
        done = [image.path for place in finished for image in parts[place].images]
        plan, left = plan_of(paths, done)
        assert left == [part for place, part in enumerate(parts) if place not in finished]
        assert (plan.total, plan.before) == (18, len(done))


def test_images_that_joined_or_left_change_nothing_for_the_others():
    generator = np.random.default_rng(0)
    for _ in range(50):
        names = np.array([f"/in/{index:03d}" for index in range(60)])
        done, present = set(names[generator.random(60) < 0.5]), sorted(names[generator.random(60) < 0.7])
        plan, parts = plan_of(present, done, part_images=7)
        left = [image.path for part in parts for image in part.images]
        assert left == [name for name in present if name not in done]
        assert (plan.total, plan.before) == (len(present), len(present) - len(left))
