"""models/_weights.py: pretrained weights come from a local file of just this network, once."""

import shutil

import pytest
import torch
from conftest import AUS, STATS, describe, make_recipe
from safetensors.torch import save_file
from torch import nn

from aupipe.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from aupipe.models import build_model
from aupipe.models._inception import InceptionV3
from aupipe.models._resnet import ResNet
from aupipe.models._weights import load_pretrained, weights_follow
from aupipe.schema import DataError, LabelStats

STATISTICS = LabelStats.from_json(STATS)


def write(path, module, **more):
    save_file({k: v.clone() for k, v in module.state_dict().items()} | more, path)
    return str(path)


def resnet(depth, seed):
    torch.manual_seed(seed)
    return ResNet(depth)


@pytest.fixture(name="file", scope="module")
def _file(tmp_path_factory):
    """ResNet-18's weights as torchvision would save them, with the classifier."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    return write(path, resnet(18, 1), **{"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})


def same(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_a_file_fills_the_trunk_and_its_classifier_is_passed_over(file):
    trunk = resnet(18, 2)
    load_pretrained(trunk, file)
    assert same(trunk.state_dict(), resnet(18, 1).state_dict())


def test_the_auxiliary_classifier_of_inception_is_passed_over(tmp_path):
    torch.manual_seed(0)
    origin = InceptionV3()
    path = write(tmp_path / "i.safetensors", origin, **{"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1)})
    trunk = InceptionV3()
    load_pretrained(trunk, path)
    assert same(trunk.state_dict(), origin.state_dict())


def test_no_file_leaves_random_weights():
    trunk = resnet(18, 2)
    load_pretrained(trunk, None)
    assert same(trunk.state_dict(), resnet(18, 2).state_dict())


def test_files_without_batchnorm_counters_will_do(tmp_path):
    tensors = {k: v for k, v in resnet(18, 1).state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "old.safetensors")
    trunk = resnet(18, 2)
    load_pretrained(trunk, str(tmp_path / "old.safetensors"))
    assert same(tensors, trunk.state_dict())


def test_a_file_of_another_depth_is_refused_though_it_holds_every_name(tmp_path, file):
    larger = write(tmp_path / "resnet34.safetensors", resnet(34, 1))
    assert resnet(18, 1).state_dict().keys() < resnet(34, 1).state_dict().keys()
    with pytest.raises(DataError, match=r"of another network than ResNet: layer1\.2\.bn1\.bias"):
        load_pretrained(resnet(18, 2), larger)
    with pytest.raises(DataError, match=r"of another network than ResNet.*docs/models.md"):
        load_pretrained(resnet(34, 2), file)
    with pytest.raises(DataError, match="of another network than InceptionV3"):
        load_pretrained(InceptionV3(), file)


def test_an_absent_or_damaged_file_names_the_snippet(tmp_path):
    with pytest.raises(DataError, match=r"resnet18.safetensors are not here; .*snippet in docs/models.md"):
        load_pretrained(resnet(18, 0), str(tmp_path / "resnet18.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    with pytest.raises(DataError, match=r"broken.safetensors cannot be read .*docs/models.md"):
        load_pretrained(resnet(18, 0), str(tmp_path / "broken.safetensors"))


def test_a_trunk_is_found_in_a_checkpoint_under_any_prefix(tmp_path):
    whole = nn.ModuleDict({"some": nn.ModuleDict({"trunk": resnet(18, 1)}), "head": nn.Linear(512, 3)})
    trunk = resnet(18, 2)
    load_pretrained(trunk, write(tmp_path / WEIGHTS, whole))
    assert same(trunk.state_dict(), resnet(18, 1).state_dict())
    deeper = nn.ModuleDict({"trunk": resnet(34, 1)})
    with pytest.raises(DataError, match="another network"):
        load_pretrained(trunk, write(tmp_path / "deeper.safetensors", deeper))


def test_nothing_is_read_where_weights_follow():
    with weights_follow():
        load_pretrained(resnet(18, 0), "nowhere.safetensors")
    with pytest.raises(DataError, match="not here"):
        load_pretrained(resnet(18, 0), "nowhere.safetensors")


def test_a_checkpoint_needs_no_file_of_pretrained_weights(tmp_path, file):
    """Whoever predicts has the checkpoint alone."""
    options = {"name": "embeddings", "backbone": "resnet18", "weights": str(tmp_path / "moved.safetensors")}
    shutil.copy(file, options["weights"])
    model = build_model("embeddings", options, AUS, STATISTICS).eval()
    save_checkpoint(tmp_path / "best", model, describe(make_recipe(model=options)))
    (tmp_path / "moved.safetensors").unlink()
    again, _ = load_checkpoint(tmp_path / "best")
    frames = torch.rand(1, 2, 3, 64, 64)
    torch.testing.assert_close(again(frames).logits_BTM, model(frames).logits_BTM)
    with pytest.raises(DataError, match="not here"):
        build_model("embeddings", options, AUS, STATISTICS)
