"""The mesh, the rules table, and where parameters and optimizer state come to lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from bert_jax import BertConfig, BertForPreTraining
from train.errors import InputError
from train.sharding import MeshConfig, make_mesh, parameter_shardings, partition_spec, row_shards
from train.state import abstract_state, init_state
from transformer_jax import Transformer, TransformerConfig, logical_axes

IDS = jax.ShapeDtypeStruct((8, 16), jnp.int32)


def bert(**overrides):
    return BertForPreTraining(BertConfig.tiny(vocab_size=512, **overrides)), (IDS,)


def transformer(**overrides):
    return Transformer(TransformerConfig.tiny(512, **overrides)), (IDS, IDS)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("make", [bert, transformer])
def test_every_parameter_is_covered_and_split(make, scan):
    model, inputs = make(scan_layers=scan)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    shardings = parameter_shardings(logical_axes(model, *inputs), shapes, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    layer = shardings["bert"]["encoder"] if make is bert else shardings["decoder"]
    layer, lead = (layer["layers"], (None,)) if scan else (layer["layer_1"], ())
    assert layer["mlp"]["up"]["kernel"].spec == PartitionSpec(*lead, "fsdp", "tensor")
    assert layer["mlp"]["down"]["kernel"].spec == PartitionSpec(*lead, "tensor", "fsdp")


def test_an_axis_without_a_rule_and_two_axes_on_one_are_refused():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with pytest.raises(ValueError, match=r"no rule .* \['experts'\]"):
        partition_spec("x", ("embed", "experts"), (8, 8), mesh)
    with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
        partition_spec("x", ("heads", "mlp"), (8, 8), mesh)


def test_a_dimension_that_cannot_be_split_stays_whole():
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    assert partition_spec("table", ("vocab", "embed"), (30522, 768), mesh) == PartitionSpec(None, "fsdp")
    assert partition_spec("table", ("vocab", "embed"), (30528, 768), mesh) == PartitionSpec("tensor", "fsdp")


def test_meshes():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert dict(make_mesh(MeshConfig(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert row_shards(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))) == 4
    for wrong in (MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=8, tensor=2)):
        with pytest.raises(InputError, match=r"--mesh.data .* there are 8"):
            make_mesh(wrong)
    with pytest.raises(InputError, match="--mesh.tensor must be an integer from 1 .*not 0"):
        make_mesh(MeshConfig(tensor=0))


@pytest.mark.parametrize("make", [bert, transformer])
def test_with_fsdp_8_each_device_holds_an_eighth(make):
    model, inputs = make()
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    optimizer = optax.adamw(1e-3)
    with jax.set_mesh(mesh):
        abstract = abstract_state(model, inputs, optimizer, mesh)
        state = init_state(model, inputs, optimizer, abstract, seed=0)
    arrays = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim]
    sharded = [x for x in arrays if "fsdp" in x.sharding.spec]
    for x in sharded:
        assert len(x.addressable_shards) == 8
        assert all(shard.data.size * 8 == x.size for shard in x.addressable_shards)
    # Whole on each device: the biases that have no axis `embed`, into heads, feed-forward network and vocabulary.
    total = sum(x.nbytes for x in arrays)
    assert sum(x.nbytes for x in sharded) > 0.98 * total
    assert sum(x.addressable_shards[0].data.nbytes for x in arrays) < 0.15 * total


def test_the_optimizer_state_lies_as_its_parameters_do():
    model, inputs = transformer()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = abstract_state(model, inputs, optax.adamw(1e-3), mesh)
    moments = abstract.opt_state[0]
    for moment in (moments.mu, moments.nu):
        same = jax.tree.map(lambda p, m: p.sharding == m.sharding, abstract.params, moment)
        assert all(jax.tree.leaves(same))
    assert moments.count.sharding.spec == PartitionSpec()


def test_a_fresh_state_is_the_same_on_every_mesh():
    model, inputs = transformer()
    states = []
    for config, devices in ((MeshConfig(), jax.devices()[:1]), (MeshConfig(data=2, fsdp=2, tensor=2), None)):
        mesh = make_mesh(config, devices)
        with jax.set_mesh(mesh):
            optimizer = optax.sgd(1.0)
            abstract = abstract_state(model, inputs, optimizer, mesh)
            states.append(jax.tree.map(np.asarray, init_state(model, inputs, optimizer, abstract, seed=0).params))
    # One rounding of float32: the draws are the same bits, their scaling may be fused differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-9), *states)
