"""Networks: layers, encoders, decoders, and the noise they share."""

from scvi_dist.nn.decoder import Decoder, DecoderSCVI
from scvi_dist.nn.dropout import Dropout
from scvi_dist.nn.embedding import Embedding
from scvi_dist.nn.encoder import Encoder
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.noise import NoiseStream
from scvi_dist.nn.one_hot import one_hot
from scvi_dist.nn.totalvi_decoder import DecoderTOTALVI
from scvi_dist.nn.totalvi_encoder import EncoderTOTALVI

__all__ = [
    "Decoder",
    "DecoderSCVI",
    "DecoderTOTALVI",
    "Dropout",
    "Embedding",
    "Encoder",
    "EncoderTOTALVI",
    "FCLayers",
    "NoiseStream",
    "one_hot",
]
