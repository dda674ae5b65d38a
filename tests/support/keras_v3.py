"""DDPM v3's network in Keras itself, from its description alone; needs Keras (make test-v3)."""

import math
from collections.abc import Sequence

import keras
from keras import layers, ops


class TimeEmbedding(layers.Layer):
    """Sines, then cosines of the timestep, whose frequencies end at 1 / 10000."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.half = dim // 2

    def call(self, t):
        rate = math.log(10_000) / (self.half - 1)
        angles = ops.cast(t, "float32")[:, None] * ops.exp(
            -rate * ops.arange(self.half, dtype="float32")
        )
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


class ResidualBlock(layers.Layer):
    """GN, swish, conv, plus Dense(swish(emb)), GN, swish, conv; a 1x1 convolution beside it."""

    def __init__(self, width: int, groups: int, kernel: int, has_skip: bool, dropout: float):
        super().__init__()
        self.skip = layers.Conv2D(width, 1) if has_skip else None
        self.norm1 = layers.GroupNormalization(groups)
        self.conv1 = layers.Conv2D(width, kernel, padding="same")
        self.dense = layers.Dense(width)
        self.norm2 = layers.GroupNormalization(groups)
        self.dropout = layers.Dropout(dropout)
        self.conv2 = layers.Conv2D(width, kernel, padding="same")

    def call(self, inputs):
        x, emb = inputs
        h = self.conv1(keras.activations.swish(self.norm1(x)))
        h = layers.add([h, layers.Reshape((1, 1, -1))(self.dense(keras.activations.swish(emb)))])
        h = self.conv2(self.dropout(keras.activations.swish(self.norm2(h))))
        return layers.add([h, x if self.skip is None else self.skip(x)])


class AttentionBlock(layers.Layer):
    """GN, attention of every position to every other with heads as wide as the image."""

    def __init__(self, width: int, groups: int, heads: int) -> None:
        super().__init__()
        self.norm = layers.GroupNormalization(groups)
        self.attention = layers.MultiHeadAttention(heads, width, attention_axes=(1, 2))

    def call(self, x):
        h = self.norm(x)
        return layers.add([x, self.attention(h, h)])


class DownSample(layers.Layer):
    """A convolution of stride 2."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = layers.Conv2D(width, kernel, strides=2, padding="same")

    def call(self, x):
        return self.conv(x)


class UpSample(layers.Layer):
    """Nearest neighbours, then a convolution."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.larger = layers.UpSampling2D(2, interpolation="nearest")
        self.conv = layers.Conv2D(width, kernel, padding="same")

    def call(self, x):
        return self.conv(self.larger(x))


class SpaceToDepth(layers.Layer):
    """TensorFlow's space_to_depth, or its inverse."""

    def __init__(self, block: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.block, self.inverse = block, inverse

    def call(self, x):
        b, (_, h, w, c) = self.block, x.shape
        if self.inverse:
            x = ops.transpose(ops.reshape(x, (-1, h, w, b, b, c // b**2)), (0, 1, 3, 2, 4, 5))
            return ops.reshape(x, (-1, h * b, w * b, c // b**2))
        x = ops.transpose(ops.reshape(x, (-1, h // b, b, w // b, b, c)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, h // b, w // b, c * b**2))


def build(
    size: Sequence[int],
    channels: int,
    first: int,
    multipliers: Sequence[int],
    attends: Sequence[bool],
    *,
    num_res_blocks: int,
    block_size: int = 1,
    groups: int = 8,
    heads: int = 1,
    emb_dim: int = 16,
    kernel: int = 3,
    num_classes: int | None = None,
    class_dim: int | None = None,
    dropout: float = 0.1,
    as_layers: bool = False,
) -> keras.Model:
    """The network of (image, timestep[, label]); as_layers: its blocks are layers of their own."""

    def call(block, inputs):
        return block(inputs) if as_layers else block.call(inputs)

    def residual(h, width):
        block = ResidualBlock(width, groups, kernel, h.shape[-1] != width, dropout)
        return call(block, [h, emb])

    def attention(h):
        return call(AttentionBlock(h.shape[-1], groups, heads), h)

    image, t = layers.Input((*size, channels)), layers.Input((), dtype="int32")
    inputs = [image, t]
    emb = TimeEmbedding(emb_dim)(t)
    emb = layers.Dense(emb_dim)(layers.Dense(emb_dim, activation="swish")(emb))
    if num_classes is not None:
        label = layers.Input((), dtype="int32")
        inputs.append(label)
        of_class = layers.Embedding(num_classes, class_dim or emb_dim)(label)
        if class_dim not in (None, emb_dim):
            of_class = layers.Dense(emb_dim)(of_class)
        emb = layers.add([emb, of_class])

    widths = [first * multiplier for multiplier in multipliers]
    h = SpaceToDepth(block_size)(image) if block_size > 1 else image
    h = layers.Conv2D(first, kernel, padding="same")(h)
    skips = [h]
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            h = residual(h, width)
            h = attention(h) if attends[level] else h
            skips.append(h)
        if level < len(widths) - 1:
            h = call(DownSample(width, kernel), h)
            skips.append(h)
    h = residual(h, widths[-1])
    h = attention(h) if attends[-1] else h
    h = residual(h, widths[-1])
    for level in reversed(range(len(widths))):
        for _ in range(num_res_blocks + 1):
            h = residual(layers.concatenate([h, skips.pop()]), widths[level])
            h = attention(h) if attends[level] else h
        if level:
            h = call(UpSample(widths[level], kernel), h)
    h = keras.activations.swish(layers.GroupNormalization(groups)(h))
    h = layers.Conv2D(channels * block_size**2, kernel, padding="same")(h)
    h = SpaceToDepth(block_size, inverse=True)(h) if block_size > 1 else h
    return keras.Model(inputs, h)
