"""TensorBoard's own reader finds what the metrics say."""

import pytest

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def load(directory):
    events = tensorboard.EventAccumulator(
        str(directory), size_guidance={tensorboard.SCALARS: 0, tensorboard.TENSORS: 0}
    )
    events.Reload()
    return events


def test_scalars_and_texts_are_read(hadal, runs, tmp_path):
    done = hadal("report", runs["plain"], "--tensorboard", tmp_path)
    assert done.returncode == 0, done.stderr
    events = load(tmp_path / "plain")
    tags = events.Tags()
    loss = events.Scalars("loss/train") if "loss/train" in tags["scalars"] else None
    assert loss is not None, tags
    assert [e.step for e in loss] == list(range(1, 51))
    assert loss[0].value > loss[-1].value
    assert loss[0].wall_time == pytest.approx(1.79e9, abs=100)
    assert "loss/validation" in tags["scalars"] and "optimizer/grad_norm" in tags["scalars"]
    assert "loss/mtp" not in tags["scalars"]
    assert "samples" in tags["tensors"]
    sample = events.Tensors("samples")[-1].tensor_proto
    assert b"Once upon a time" in sample.string_val[0]
    metadata = events.SummaryMetadata("samples")
    assert metadata.plugin_data.plugin_name == "text"


def test_layers_have_tags_of_their_own(hadal, runs, tmp_path):
    assert hadal("report", runs["muon"], "--tensorboard", tmp_path).returncode == 0
    tags = load(tmp_path / "muon").Tags()["scalars"]
    assert "expert_load/layer_01" in tags and "expert_load/layer_00" not in tags
    assert "indexer/recall" in tags and "speed/mfu" in tags
