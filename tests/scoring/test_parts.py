import numpy as np

from dfganext.data import discovery as inputs
from dfganext.data.discovery import Found
from dfganext.scoring import stores
from dfganext.scoring.parts import Plan
from dfganext.scoring.rows import ScoredRows, make_keys


def plan_of(paths, done=(), part_images=4):
    ones, false = np.ones(len(done), np.int64), np.zeros(len(done), bool)
    scored = ScoredRows.of(["part"], [make_keys(list(done), ones, ones, false, false)])
    listing = stores.Listing("in", iter([Found(path, 1, 1) for path in paths]), inputs.read, remote=False)
    plan = Plan(listing, scored, part_images)
    return plan, list(plan)


def test_parts_do_not_depend_on_what_is_done():
    paths = [f"/in/{index:02d}.png" for index in range(18)]
    plan, parts = plan_of(paths)
    assert [image.path for part in parts for image in part.images] == paths
    assert [len(part.images) for part in parts] == [4, 4, 4, 4, 2]
    assert len({part.name for part in parts}) == 5
    assert (plan.total, plan.kept) == (18, 0)
    for finished in ({0, 1}, {1, 3}, {4}, {0, 1, 2, 3, 4}):
        done = [image.path for place in finished for image in parts[place].images]
        plan, left = plan_of(paths, done)
        assert left == [part for place, part in enumerate(parts) if place not in finished]
        assert (plan.total, plan.kept) == (18, len(done))


def test_added_and_deleted_images_do_not_affect_others():
    generator = np.random.default_rng(0)
    for _ in range(50):
        names = np.array([f"/in/{index:03d}" for index in range(60)])
        done, present = set(names[generator.random(60) < 0.5]), sorted(names[generator.random(60) < 0.7])
        plan, parts = plan_of(present, done, part_images=7)
        left = [image.path for part in parts for image in part.images]
        assert left == [name for name in present if name not in done]
        assert (plan.total, plan.kept) == (len(present), len(present) - len(left))


def replan(files, found, part_images=4):
    """The parts for images (path, size), where files hold rows (path, size, retry)."""
    keys = [
        make_keys(
            [path for path, _, _ in file],
            np.array([size for _, size, _ in file]),
            np.ones(len(file), np.int64),
            np.array([retry for _, _, retry in file], bool),
            np.array([retry for _, _, retry in file], bool),
        )
        for file in files
    ]
    scored = ScoredRows.of([f"part-{number}" for number in range(len(files))], keys)
    images = iter([Found(path, size, 1) for path, size in found])
    plan = Plan(stores.Listing("in", images, inputs.read, remote=False), scored, part_images)
    return plan, list(plan)


def test_changed_images_and_errors_that_may_pass_are_scored_again_by_the_file_of_their_row():
    files = [
        [("/in/a", 1, False), ("/in/b", 1, False), ("/in/c", 1, True)],
        [("/in/d", 1, False), ("/in/e", 1, False)],
        [("/in/f", 1, False)],
    ]
    found = [("/in/a", 2), ("/in/b", 1), ("/in/c", 1), ("/in/d", 2), ("/in/e", 3), ("/in/f", 1), ("/in/new", 1)]
    plan, parts = replan(files, found)
    by_name = {part.name: ([image.path for image in part.images], part.replaces) for part in parts}
    assert by_name.pop("part-0") == (["/in/a", "/in/c"], True)
    assert by_name.pop("part-1") == (["/in/d", "/in/e"], True)
    assert list(by_name.values()) == [(["/in/new"], False)]
    assert (plan.total, plan.kept, plan.unreadable) == (7, 2, 0)


def test_each_file_is_replaced_once():
    generator = np.random.default_rng(0)
    for _ in range(30):
        names = [f"/in/{index:03d}" for index in range(60)]
        owner = generator.integers(0, 6, 60)  # 5: no row
        files = [
            [(name, 1, False) for name, file in zip(names, owner, strict=True) if file == number] for number in range(5)
        ]
        changed = {name for name in names if generator.random() < 0.5}
        present = [name for name in names if generator.random() < 0.8]
        _, parts = replan(files, [(name, 2 if name in changed else 1) for name in present])
        replaced = [part for part in parts if part.replaces]
        assert len({part.name for part in replaced}) == len(replaced)
        fresh = [image.path for part in parts if not part.replaces for image in part.images]
        assert fresh == [name for name, file in zip(names, owner, strict=True) if file == 5 and name in present]
        for part in replaced:
            mine = {name for name, _, _ in files[int(part.name[-1])]}
            assert [image.path for image in part.images] == [name for name in present if name in mine & changed]
