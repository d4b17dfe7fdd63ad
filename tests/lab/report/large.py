"""Twenty runs of 200 epochs, with every number that a report draws."""

import json
import math

from lab.report.test_tables import finish, store
from polyak_lab.config.run import content_hash

EPOCHS, ROWS = 200, 20


def write(folder):
    """Write the runs below a folder."""
    for row in range(ROWS):
        place = folder / f"row-{row:02}" / "seed-0"
        store(
            place, f"ALI-G, momentum 0.9, ball 20, lr {row + 1}", "alig", None, 0, 0.9, 0.5, options={"lr": row + 1.0}
        )
        add_ball(place, 20.0)
        records = [record(epoch, row) for epoch in range(1, EPOCHS + 1)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
        timing = {"seconds": 2.0 + row / 7, "evaluation_seconds": 0.5, "images_per_second": 1500.0 / 7}
        lines = [json.dumps({"epoch": epoch, **timing}) for epoch in range(1, EPOCHS + 1)]
        (place / "timings.jsonl").write_text("\n".join(lines) + "\n")
        finish(place)


def record(epoch, row):
    """Return the numbers of an epoch: curves of the usual forms, which differ from row to row."""
    loss = 2.3 * math.exp(-epoch / (20 + row))
    capped = max(0.0, 1 - epoch / 100)
    numbers = {"train_loss": loss, "test_loss": loss + 0.2, "test_accuracy": 0.95 - loss / 7, "capped": capped}
    numbers |= {"step_size": min(row + 1.0, 3 * loss), "lr": row + 1.0, "gradient_norm": 3 * loss}
    return {"epoch": epoch, **numbers, "weight_norm": min(20.0, 7 + epoch / (row + 3))}


def add_ball(folder, radius):
    """Let the run of a folder have a ball."""
    config = json.loads((folder / "config.json").read_text())
    config["run"]["optimizer"]["l2_ball"] = radius
    config["hash"] = content_hash(config["run"])
    (folder / "config.json").write_text(json.dumps(config))
