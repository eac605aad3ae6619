"""config.py: the repository's params load, and every slip in them is named."""

from pathlib import Path

import pytest
import yaml

from aupipe import config
from aupipe.config import errors_as_sentences, fingerprint, load_params, to_json
from aupipe.models import check_config
from aupipe.schema import ConfigError, DataError

ROOT = Path(__file__).parent.parent
PARAMS = """
seed: 1
experiment: {recipes: [small], corpora: [demo], folds: [fold1]}
corpora:
  demo: {layout: bp4d, aus: bp4d, folds: {published: false}}
recipes:
  parent:
    model: {name: attention_cnn, pooling: 3x3, attention: true}
    input: {align: face112, crop: 112}
    clip: {frames: 4, stride: 4}
    phases: [{name: train, epochs: 10, batch: 64, optimiser: {name: adam, lr: 0.001}}]
  small:
    base: parent
    model: {attention: false}
    input: {crop: 96}
"""


@pytest.fixture
def load(tmp_path):
    """Load PARAMS with some text replaced and some overrides."""

    def load(old="", new="", overrides=()):
        assert old in PARAMS
        path = tmp_path / "params.yaml"
        path.write_text(PARAMS.replace(old, new) if old else PARAMS)
        return load_params(path, overrides)

    return load


def test_params_of_the_repository_load_and_fit_their_models():
    params = load_params(ROOT / "params.yaml")
    assert params.experiment.recipes
    for recipe in params.recipes.values():
        check_config(recipe.model["name"], recipe.model)
    for corpus in params.corpora.values():
        assert len(corpus.au_set) > 0
    for name in params.experiment.recipes:
        corpora = [params.corpus(corpus) for corpus in params.experiment.corpora]
        assert all(params.recipe(name).input.align in corpus.align for corpus in corpora)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("clip: {frames", "clipp: {frames", r"recipes\.parent: unknown key 'clipp'; did you mean 'clip'\?"),
        ("stride: 4", "strid: 4", r"unknown key 'strid'; did you mean 'stride'"),
        ("seed: 1", "seed: one", r"seed: expected int, got 'one'"),
        ("seed: 1", "seed: true", r"seed: expected int, got True"),
        ("lr: 0.001", "lr: fast", r"phases\[0\]: optimiser: lr: expected float, got 'fast'"),
        ("folds: [fold1]", "folds: fold1", r"experiment: folds: expected a list"),
        ("{published: false}", "[1]", r"folds: expected a mapping"),
        ("lr: 0.001", "momentum: 0.9", r"the key 'lr' is missing"),
        ("seed: 1", "", r"the key 'seed' is missing"),
        ("align: face112", "align: face113", r"unknown alignment 'face113'.*face200, face112"),
        ("crop: 96", "crop: 120", r"crop of 120 pixels does not fit into face112"),
        ("name: adam", "name: adan", r"unknown optimiser 'adan'"),
        ("name: attention_cnn", "name: vgg", r"unknown model 'vgg'.*attention_cnn"),
        ("aus: bp4d", "aus: bp5d", r"unknown AU set 'bp5d'"),
        ("aus: bp4d", "aus: [1, 3]", r"unknown AU 3"),
        ("batch: 64", "batch: 0", r"at least one epoch and one clip"),
        ("lr: 0.001", "lr: 0", r"positive lr"),
        ("frames: 4", "frames: 0", r"at least 1"),
        ("recipes: [small]", "recipes: [smal]", r"unknown recipe 'smal' in experiment\.recipes.*did you mean 'small'"),
        ("corpora: [demo]", "corpora: [bp4d]", r"unknown corpus 'bp4d' in experiment\.corpora.*demo"),
        ("base: parent", "base: parant", r"recipes\.small: unknown base 'parant'; did you mean 'parent'"),
        ("base: parent", "base: small", r"small → small form a circle"),
        ("base: parent", "base: 5", r"recipes\.small: base: expected the name"),
        ("  parent:\n", "  parent:\n    base: small\n", r"form a circle"),
        ("seed: 1", "seed: [", r"not readable YAML"),
    ],
)
def test_slip_is_named_with_its_place(load, old, new, reason):
    with pytest.raises(ConfigError, match=reason):
        load(old, new)


def test_variant_states_only_what_differs(load):
    params = load()
    parent, small = params.recipe("parent"), params.recipe("small")
    assert small.model == {"name": "attention_cnn", "pooling": "3x3", "attention": False}
    assert (small.input.align, small.input.crop) == ("face112", 96)
    assert small.phases == parent.phases
    assert parent.model["attention"] is True


def test_variant_of_a_variant_inherits_from_both(load):
    recipe = load("recipes:\n", "recipes:\n  tiny: {base: small, clip: {stride: 1}}\n").recipe("tiny")
    assert (recipe.input.crop, recipe.clip.frames, recipe.clip.stride) == (96, 4, 1)


def test_list_of_a_variant_replaces_that_of_its_base(load):
    phases = "    phases: [{name: p, epochs: 1, batch: 2, optimiser: {name: sgd, lr: 1}}]\n"
    recipe = load("    input: {crop: 96}\n", "    input: {crop: 96}\n" + phases).recipe("small")
    assert [phase.name for phase in recipe.phases] == ["p"]
    assert recipe.phases[0].optimiser.lr == 1.0, "a whole number is a float where one is wanted"


def test_overrides_are_dotted_keys_with_yaml_values(load):
    text = ["recipes.small.clip.frames=3", "corpora.demo.aus=[1, 12]", "experiment.recipes=[parent]", "recipes.small.paper="]
    params = load(overrides=text[:3])
    assert params.recipe("small").clip.frames == 3
    assert params.recipe("parent").clip.frames == 4
    assert params.corpora["demo"].aus == (1, 12)
    assert params.experiment.recipes == ("parent",)
    with pytest.raises(ConfigError, match="paper: expected str, got None"):
        load(overrides=text)


def test_override_of_a_base_reaches_its_variants(load):
    assert load(overrides=["recipes.parent.clip.stride=9"]).recipe("small").clip.stride == 9


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "not of the form"),
        ("seed.x=1", "goes through 'seed'"),
        ("seed=[", "not readable YAML"),
        ("recipes.small.clip.framez=3", "did you mean 'frames'"),
    ],
)
def test_override_that_cannot_be_is_named(load, override, reason):
    with pytest.raises(ConfigError, match=reason):
        load(overrides=[override])


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_params(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["", "- 1\n", "just text"])
def test_file_without_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no mapping"):
        load_params(path)


def test_absent_or_binary_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist here; run the command in the repository's root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_params(tmp_path / "params.yaml")


def test_values_survive_json_and_are_checked_again(load):
    recipe = load().recipe("small")
    assert config.build(config.Recipe, to_json(recipe), "recipe") == recipe
    assert yaml.safe_load(yaml.safe_dump(to_json(recipe)))["input"] == to_json(recipe.input)
    assert recipe.input == config.InputSpec(align="face112", crop=96)


@pytest.mark.parametrize(("key", "known"), [("normalise", "model, image, grey"), ("augment", "crop, strong")])
def test_unknown_treatment_of_the_input_names_the_known_ones(key, known):
    with pytest.raises(ConfigError, match=f"unknown {key} 'wild' of an input; known are {known}"):
        config.InputSpec(**{key: "wild"})


def test_a_crop_cannot_be_shrunk_to_more():
    with pytest.raises(ConfigError, match="a crop of 96 pixels cannot be shrunk to 97; give 1 to 96"):
        config.InputSpec(align="face112", crop=96, resize=97)


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown schedule 'wavy'; known are step, one_cycle, cosine"):
        config.OptimiserConfig(name="adam", lr=0.1, schedule="wavy")


def test_fingerprint_follows_values_and_file_contents(tmp_path):
    one, two = tmp_path / "a.py", tmp_path / "b.py"
    for path in (one, two):
        path.write_text("x = 1")
    key = fingerprint({"a": 1, "b": (2, Path("c"))}, [one, two])
    assert fingerprint({"b": [2, "c"], "a": 1}, [two, one]) == key, "neither the order of keys nor of files counts"
    assert fingerprint({"a": 2, "b": [2, "c"]}, [one, two]) != key
    assert fingerprint({"a": 1, "b": [2, "c"]}, [one]) != key
    two.write_text("x = 2")
    assert fingerprint({"a": 1, "b": [2, "c"]}, [one, two]) != key


def test_code_is_a_module_or_every_file_of_a_folder():
    assert config.code("align") == [config.PACKAGE / "align.py"]
    assert config.PACKAGE / "datasets" / "bp4d.py" in config.code("datasets")
    assert all(path.is_file() for path in config.code("align", "datasets"))


def test_raw_root_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("AUPIPE_RAW", raising=False)
    assert config.raw_root("bp4d") == Path("data/raw/bp4d")
    monkeypatch.setenv("AUPIPE_RAW", "elsewhere")
    assert config.raw_root("bp4d") == Path("elsewhere/bp4d")


@pytest.mark.parametrize("error", [ConfigError("a slip"), DataError("a slip")])
def test_users_error_is_one_sentence_and_exit_code_2(error, capsys):
    with pytest.raises(SystemExit) as stop, errors_as_sentences():
        raise error
    assert stop.value.code == 2
    assert stop.value.__suppress_context__
    assert capsys.readouterr().err == "aupipe: a slip\n"
    with pytest.raises(ZeroDivisionError), errors_as_sentences():
        raise ZeroDivisionError


def test_an_exponent_without_a_point_is_a_number():
    override = "recipes.attention_cnn.phases=[{name: a, epochs: 1, batch: 2, optimiser: {name: adam, lr: 1e-3}}]"
    assert load_params(ROOT / "params.yaml", [override]).recipes["attention_cnn"].phases[0].optimiser.lr == 0.001


@pytest.mark.parametrize("kind", ["recipes", "corpora", "folds"])
def test_an_experiment_of_nothing_is_refused(kind):
    with pytest.raises(ConfigError, match="at least one"):
        load_params(ROOT / "params.yaml", [f"experiment.{kind}=[]"])


def test_an_unknown_rig_is_refused():
    with pytest.raises(ConfigError, match="unknown rig 'muscles'"):
        load_params(ROOT / "params.yaml", ["corpora.synthetic-bp4d.synthetic.rig=muscles"])


def test_what_a_paper_prints_is_not_inherited(load):
    params = load("  small:\n", "    expected: {bp4d: 60}\n  small:\n")
    assert params.recipe("parent").expected == {"bp4d": 60.0}
    assert params.recipe("small").expected == {}


ORIGIN = ("    input: {crop: 96}\n", "    input: {crop: 96}\n    init: {recipe: parent, au_map: {9: 10}}\n")


def test_a_recipe_starts_from_another(load):
    small = load(*ORIGIN).recipe("small")
    assert small.init == config.InitConfig(recipe="parent", au_map={9: 10})
    assert config.build(config.Recipe, to_json(small), "recipe") == small, "JSON makes texts of numbers that are keys"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("recipes.small.init.recipe=parant", r"unknown recipe 'parant' in recipes\.small\.init.*did you mean 'parent'"),
        ("recipes.small.init.recipe=small", r"small → small: what they start from \(init\) is a circle"),
        ("recipes.parent.init={recipe: small}", r"→ (small|parent): what they start from \(init\) is a circle"),
        ("recipes.small.init.corpus=dema", r"unknown corpus 'dema' in recipes\.small\.init.*did you mean 'demo'"),
        ("recipes.small.init.au_map={9: 3}", r"unknown AU 3"),
        ("recipes.small.init.au_map={nine: 1}", r"au_map: expected int, got 'nine'"),
        ("recipes.small.init.folds=fold1", r"did you mean 'fold'"),
    ],
)
def test_slip_in_an_origin_is_named(load, override, reason):
    with pytest.raises(ConfigError, match=reason):
        load(*ORIGIN, overrides=[override])
