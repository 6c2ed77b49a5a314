"""Pulls of spaces from the official files, their caches and the Hub, including every failure."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import sha256
from lcm_cli.hub import cards, locate, pins
from lcm_cli.transfer.plan import choose_port_files
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import find_address, resolve

FILES = {"encoder": "encoder.pt", "decoder": "decoder.pt", "tokenizer": "spm.model"}


@pytest.fixture
def card(cache, official, server, tmp_path):
    """A card with parts on the server in the official layout."""
    for file in FILES.values():
        server.files[f"/{file}"] = (official.folder / file).read_bytes()
    urls = {role: {"url": server.url(f"/{file}")} for role, file in FILES.items()}
    return official.card(tmp_path / "small.toml", urls)


def run(card, **options):
    made = resolve(str(card)).plan(force=options.get("force", False))
    return locate.read_space(pull(made, accept_licence=True, **options).path)


def is_whole(space, official):
    for role in ("encoder", "decoder"):
        state = official.state(role)
        state.pop("final_proj.weight", None)
        found = load_file(getattr(space, role))
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
    return space.tokenizer.read_bytes() == (official.folder / "spm.model").read_bytes()


def leftovers(cache):
    hidden = [path.name for path in (cache / "spaces").iterdir() if path.name != "small"]
    return [*hidden, *(path.name for path in (cache / "downloads").iterdir())]


def test_official_layout_over_http(cache, card, official, server):
    space = run(card)
    assert is_whole(space, official)
    assert space.encoder.parent == cache / "spaces" / "small"
    assert leftovers(cache) == [".small.lock"]
    config = space.config
    assert config["languages"] == list(official.languages)
    assert (config["encoder"], config["decoder"]) == (official.encoder, official.decoder)
    assert config["licence"] == "CC-BY-NC-4.0"
    for role, file in FILES.items():
        assert config["source"][role]["from"] == server.url(f"/{file}")
        assert config["source"][role]["sha256"] == sha256(official.folder / file)
        assert config["sha256"][role] == sha256(getattr(space, role))
        assert pins.find_pin(cache, server.url(f"/{file}")).sha256 == sha256(official.folder / file)
        assert pins.find_pin(cache, server.url(f"/{file}")).etag


def test_second_pull_sends_no_request(card, server):
    run(card)
    server.requests.clear()
    made = resolve(str(card)).plan()
    assert made.ready
    assert pull(made).path == cards.space_folder("small")  # nothing to fetch: no licence to accept
    assert server.requests == []


def test_file_urls_without_a_network(cache, official, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    urls = {role: {"url": (official.folder / file).as_uri()} for role, file in FILES.items()}
    assert is_whole(run(official.card(tmp_path / "small.toml", urls)), official)


def test_space_works(card, official):
    from lcm_cli.space import load_space

    run(card)
    space = load_space("small")
    assert space.encode(["the cat sleeps"], "eng_Latn").concepts.shape == (1, 16)


def test_plan_has_sizes_and_fetches_nothing(card, official, server):
    made = resolve(str(card)).plan()
    sizes = {part.role: part.bytes for part in made.parts}
    assert sizes == {role: (official.folder / file).stat().st_size for role, file in FILES.items()}
    assert all(part.exact for part in made.parts)
    assert {method for method, _, _ in server.requests} == {"HEAD"}
    assert not made.ready


def test_plan_without_a_network_estimates(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = resolve("sonar").plan()
    assert [(part.bytes, part.exact) for part in made.parts] == [
        (3_064_365_056, False),
        (3_467_608_064, False),
        (None, False),
    ]
    with pytest.raises(NotFoundError, match=r"sonar_text_encoder\.pt") as caught:
        pull(made, accept_licence=True)
    assert "lcm pull sonar" in caught.value.hint


def test_licence_must_be_accepted(card, server):
    made = resolve(str(card)).plan()
    with pytest.raises(AuthError, match=r"CC-BY-NC-4\.0 \(not for sale\)") as caught:
        pull(made)
    assert "--accept-licence" in caught.value.hint
    assert {method for method, _, _ in server.requests} == {"HEAD"}


def test_free_licence_needs_no_acceptance(official, card):
    card.write_text(card.read_text().replace("CC-BY-NC-4.0", "MIT"))
    assert locate.read_space(pull(resolve(str(card)).plan()).path).licence == "MIT"


def test_parts_are_shared_between_spaces(cache, card, official, server, tmp_path):
    run(card)
    other = card.read_text().replace('name = "small"', 'name = "robust"')
    other = other.replace("/decoder.pt", "/finetuned.pt")
    server.files["/finetuned.pt"] = server.files["/decoder.pt"]
    (tmp_path / "robust.toml").write_text(other)
    server.requests.clear()
    space = run(tmp_path / "robust.toml")
    assert {path for _, path, _ in server.requests} == {"/finetuned.pt"}
    assert is_whole(space, official)
    assert space.config["source"]["encoder"]["from"] == server.url("/encoder.pt")
    assert space.encoder.stat().st_ino == (cache / "spaces/small/encoder.safetensors").stat().st_ino


def test_files_of_fairseq2_are_used(cache, card, official, server, tmp_path):
    for file in FILES.values():  # where fairseq2 keeps its downloads: by the digest of the address
        digest = hashlib.sha1(server.url(f"/{file}").encode()).hexdigest()[:24]
        (tmp_path / "fairseq2" / digest).mkdir(parents=True)
        shutil.copy(official.folder / file, tmp_path / "fairseq2" / digest)
    said = []
    assert is_whole(run(card, notice=said.append), official)
    assert any("which fairseq2 downloaded" in line for line in said)
    assert server.requests == []
    assert (official.folder / "encoder.pt").exists()
    server.requests.clear()
    run(card, force=True)  # needed if such a file is damaged
    assert {path for _, path, _ in server.requests} == {f"/{file}" for file in FILES.values()}


def test_sonar_spaces_card_goes_before_ours(sonar_cards):
    sources = cards.card("sonar").source
    assert find_address(sources["encoder"], "encoder") == sources["encoder"].url
    (sonar_cards / f"{sources['encoder'].asset}.yaml").write_text(
        "checkpoint: https://new/enc.pt\ntokenizer: https://new/spm.model\nmodel_arch: basic\n"
        "tokenizer_config: {_set_: {langs: [eng_Latn]}}\n"
    )
    assert find_address(sources["encoder"], "encoder") == "https://new/enc.pt"
    assert find_address(sources["tokenizer"], "tokenizer") == "https://new/spm.model"


def test_truncated_weights(cache, card, official, server):
    whole = server.files["/decoder.pt"]
    server.files["/decoder.pt"] = whole[: len(whole) // 2]
    with pytest.raises(IntegrityError, match="not a complete torch file"):
        run(card)
    assert cards.list_pulled() == []
    server.files["/decoder.pt"] = whole
    server.requests.clear()
    assert is_whole(run(card), official)
    assert {path for method, path, _ in server.requests if method == "GET"} == {"/decoder.pt"}


def test_wrong_checksum_in_the_card(card, official, tmp_path):
    text = card.read_text().replace("[source.decoder]", f'[source.decoder]\nsha256 = "{"0" * 64}"')
    card.write_text(text)
    with pytest.raises(IntegrityError, match="not the file it should be: sha256"):
        run(card)
    assert cards.list_pulled() == []


@pytest.mark.slow
def test_source_that_changed_since_the_first_pull(cache, card, official, server):
    run(card)
    shutil.rmtree(cache / "spaces" / "small")
    state = {k: v + 1 for k, v in official.state("encoder").items()}
    torch.save({"model": state}, cache / "changed.pt")
    server.files["/encoder.pt"] = (cache / "changed.pt").read_bytes()
    with pytest.raises(IntegrityError, match=r"encoder\.pt has changed since") as caught:
        run(card)
    assert "--force" in caught.value.hint
    space = run(card, force=True)
    assert torch.equal(load_file(space.encoder)["layer_norm.bias"], state["layer_norm.bias"])
    shutil.rmtree(cache / "spaces" / "small")
    run(card)  # the new bytes are pinned now


def test_damaged_record_is_reported(cache, card):
    cache.mkdir(parents=True)
    (cache / "pins.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"pins\.json.*damaged"):
        run(card)


def test_weights_of_another_shape(card):
    card.write_text(card.read_text().replace("ffn_dim = 32", "ffn_dim = 64"))
    with pytest.raises(
        IntegrityError,
        match=r"/encoder\.pt is not this encoder: shape \(32, 16\) instead of \(64, 16\)",
    ):
        run(card)
    assert cards.list_pulled() == []


def test_tokenizer_that_does_not_fit(card):
    card.write_text(card.read_text().replace("'jpn_Jpan'", "").replace(', "jpn_Jpan"', ""))
    with pytest.raises(IntegrityError, match="with 3 languages"):
        run(card)


def test_wrong_number_of_languages(card):
    lines = card.read_text().splitlines()
    card.write_text("\n".join("languages = 7" if x.startswith("lang") else x for x in lines))
    with pytest.raises(IntegrityError, match="202 languages, but its card says 7"):
        run(card)


def test_card_with_the_name_of_a_bundled_card(card):
    card.write_text(card.read_text().replace('name = "small"', 'name = "sonar"'))
    with pytest.raises(UsageError, match="'sonar' is the name of a checkpoint"):
        resolve(str(card)).plan()


def test_card_without_a_part(card):
    card.write_text(card.read_text().partition("[source.tokenizer]")[0])
    with pytest.raises(IntegrityError, match="where to get: tokenizer"):
        resolve(str(card)).plan()


def test_card_with_other_sources_than_the_pulled_space(card):
    run(card)
    card.write_text(card.read_text().replace("/encoder.pt", "/other.pt"))
    with pytest.raises(UsageError, match=r"was made from .*/encoder\.pt") as caught:
        resolve(str(card)).plan()
    assert "--force" in caught.value.hint


def test_folder_needs_no_pull(card, cache):
    run(card)
    with pytest.raises(UsageError, match="is already on this machine"):
        resolve(str(cache / "spaces" / "small")).plan()


def test_card_takes_priority_over_a_folder(cache, tmp_path, monkeypatch):
    (tmp_path / "sonar").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not resolve("sonar").plan().ready
    with pytest.raises(NotFoundError, match="sonar is not on this machine"):
        locate.locate_space("sonar")
    with pytest.raises(NotFoundError, match=r"it has no config\.json"):
        locate.locate_space("./sonar")


def test_damaged_other_space_is_ignored(cache, card, official):
    broken = cache / "spaces" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    assert is_whole(run(card), official)


def test_incomplete_space_has_a_hint_for_repair(cache, card, official):
    run(card).decoder.unlink()
    with pytest.raises(NotFoundError, match=r"decoder\.safetensors is missing") as caught:
        locate.locate_space("small")
    assert caught.value.hint == "lcm pull small --force"
    assert is_whole(run(card, force=True), official)


def test_no_network_error_has_file_and_command(cache, official, tmp_path):
    urls = {role: {"url": f"http://127.0.0.1:9/{file}"} for role, file in FILES.items()}
    card = official.card(tmp_path / "small.toml", urls)
    with pytest.raises(LcmError, match=r"no network: .*encoder\.pt") as caught:
        run(card)
    assert f"lcm pull {card}" in caught.value.hint


CHILD = """
import sys
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve
print(pull(resolve(sys.argv[1]).plan(), accept_licence=True).path)
"""


def child(card: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(card)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="kills as Unix does")
def test_killed_pull_fetches_only_what_is_missing(cache, card, official, server):
    whole = len(server.files["/decoder.pt"])
    server.fail("/decoder.pt", {"pause": 0.5})
    process = child(card)
    folder = cache / "downloads" / "small"
    while not any(path.stat().st_size > 10_000 for path in folder.glob("decoder-*.part")):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cards.list_pulled() == []
    (kept,) = [path.stat().st_size for path in folder.glob("decoder-*.part")]
    assert 0 < kept < whole
    server.requests.clear()
    assert is_whole(run(card), official)
    gets = {path: wanted for method, path, wanted in server.requests if method == "GET"}
    assert gets == {"/decoder.pt": f"bytes={kept}-", "/spm.model": ""}
    assert leftovers(cache) == [".small.lock"]


@pytest.mark.slow
def test_three_pulls_at_once(cache, card, official, server):
    for file in FILES.values():
        server.fail(f"/{file}", {"pause": 0.2})
    processes = [child(card) for _ in range(3)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert is_whole(locate.locate_space("small"), official)
    assert sorted(path for method, path, _ in server.requests if method == "GET") == sorted(
        f"/{file}" for file in FILES.values()
    )


# The Hub


def port_of(official, role, folder):
    """Return the files of a Hub port with the weights of `role`."""
    names = {
        "encoder_frontend.embed.": "embed_tokens.",
        "decoder_frontend.embed.": "embed_tokens.",
        "encoder_decoder_attn": "encoder_attn",
        "attn.output_proj": "attn.out_proj",
        "ffn.inner_proj": "fc1",
        "ffn.output_proj": "fc2",
        "ffn_layer_norm": "final_layer_norm",
    }
    state = {}
    for name, tensor in official.state(role).items():
        if name.endswith("embed.weight"):
            tensor = torch.cat([tensor[[2, 0, 3, 1]], tensor[4:]])
        new = name.removeprefix(f"{role}.")
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        if name != "final_proj.weight":
            state[new] = tensor.contiguous()
    save_file(state, folder / "port.safetensors")
    return {
        "config.json": b'{"model_type": "m2m_100"}',
        "model.safetensors": (folder / "port.safetensors").read_bytes(),
        "pytorch_model.bin": b"not wanted",
        "sentencepiece.bpe.model": (official.folder / "spm.model").read_bytes(),
        "README.md": b"not wanted",
    }


@pytest.fixture
def port_card(cache, official, hub_server, tmp_path):
    hub_server.publish("org/enc", port_of(official, "encoder", tmp_path))
    hub_server.publish("org/dec", port_of(official, "decoder", tmp_path))
    repos = {"encoder": "org/enc", "decoder": "org/dec", "tokenizer": "org/enc"}
    sources = {role: {"repo": repo} for role, repo in repos.items()}
    return official.card(tmp_path / "small.toml", sources)


def test_ports_from_the_hub(cache, port_card, official, hub_server):
    made = resolve(str(port_card)).plan()
    assert all(part.bytes > 100 for part in made.parts)
    space = locate.read_space(pull(made, accept_licence=True).path)
    assert is_whole(space, official)
    commit = hub_server.repos["org/dec"].refs["main"]
    assert space.config["source"]["decoder"]["revision"] == commit
    assert pins.find_pin(cache, "org/enc/model.safetensors").sha256
    fetched = {one.path for one in hub_server.requests if one.method == "GET"}
    assert not any(path.endswith((".bin", "README.md")) for path in fetched)


def test_ports_offline_once_the_hub_has_them_cached(cache, port_card, official, monkeypatch):
    run(port_card)
    shutil.rmtree(cache / "spaces")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_whole(run(port_card), official)
    shutil.rmtree(cache / "spaces")
    shutil.rmtree(cache.parent / "hub")
    with pytest.raises(NotFoundError, match="org/enc is not on this machine and lcm is offline"):
        run(port_card)


@pytest.fixture
def local_ports(cache, official, tmp_path):
    """A card with local folders in the M2M-100 layout as parts."""
    for role in ("encoder", "decoder"):
        (tmp_path / role).mkdir()
        for name, body in port_of(official, role, tmp_path).items():
            (tmp_path / role / name).write_bytes(body)
    folders = {"encoder": "encoder", "decoder": "decoder", "tokenizer": "encoder"}
    sources = {role: {"repo": str(tmp_path / name)} for role, name in folders.items()}
    return official.card(tmp_path / "small.toml", sources)


def test_ports_in_local_folders(local_ports, official):
    assert is_whole(run(local_ports), official)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_full_disk_during_conversion(cache, local_ports, official):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(LcmError, match=r"encoder\.safetensors: File too large"):
            run(local_ports)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cards.list_pulled() == []
    assert [path.name for path in (cache / "spaces").iterdir()] == [".small.lock"]
    assert is_whole(run(local_ports), official)


def test_part_that_changed_on_its_branch(cache, port_card, official, hub_server, tmp_path):
    run(port_card)
    shutil.rmtree(cache / "spaces")
    files = port_of(official, "encoder", tmp_path)
    files["config.json"] += b" "
    hub_server.publish("org/enc", files)
    with pytest.raises(IntegrityError, match=r"org/enc/config\.json has changed since"):
        run(port_card)


def test_all_files_of_split_weights_are_chosen():
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    others = ["config.json", "pytorch_model.bin", "README.md", "tokenizer.json"]
    index = "model.safetensors.index.json"
    assert choose_port_files("decoder", [*names, index, *others]) == ["config.json", *names, index]
    assert choose_port_files("decoder", others) == ["config.json", "pytorch_model.bin"]
    assert choose_port_files("tokenizer", others) == []
    assert choose_port_files("encoder", ["README.md"]) == []
