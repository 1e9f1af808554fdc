"""The models whose exports say which operators are ordinary: random weights, no downloads, small inputs.

Each family is a function that yields `(label, module, inputs)`. `corpus.py` exports every module in several ways.
"""

import math
import sys
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

image = lambda size=64, rows=2: (torch.rand(rows, 3, size, size),)  # noqa: E731


def small(limit, module):
    """Whether a module is small enough to export here in seconds."""
    return sum(p.numel() for p in module.parameters()) < limit


def torchvision_classifiers():
    import torchvision.models as tv

    names = """alexnet vgg11_bn resnet18 resnext50_32x4d squeezenet1_1 densenet121 inception_v3 googlenet
    shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf
    vit_b_32 swin_t swin_v2_t convnext_tiny maxvit_t""".split()
    for name in names:
        options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        size = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224, "alexnet": 96, "squeezenet1_1": 96}.get(name, 64)
        yield name, getattr(tv, name)(weights=None, **options), image(size)


def torchvision_dense():
    """Segmentation, optical flow, video, and detection without the torchvision's own operators."""
    import torchvision.models as tv

    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        yield name, getattr(tv.segmentation, name)(weights=None, weights_backbone=None), image(64)
    video = (torch.rand(1, 3, 8, 64, 64),)
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
        yield name, getattr(tv.video, name)(weights=None), (torch.rand(1, 3, 16, 64, 64),) if name == "s3d" else video
    yield "raft_small", tv.optical_flow.raft_small(weights=None), (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))


def torchvision_detection():
    import torchvision.models.detection as tv

    images = ([torch.rand(3, 96, 96)],)
    for name in ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn",
                 "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn"):
        yield name, getattr(tv, name)(weights=None, weights_backbone=None), images


def torchvision_transforms():
    import torchvision.transforms.v2 as v2
    import torchvision.transforms as v1

    chain = nn.Sequential(v1.Resize([48, 48], antialias=True), v1.CenterCrop(32), v1.ConvertImageDtype(torch.float),
                          v1.Normalize([0.5, 0.5, 0.5], [0.2, 0.2, 0.2]))
    yield "preprocess", chain, (torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8),)
    yield "pad_gray", nn.Sequential(v1.Pad(2), v1.Grayscale(3), v1.GaussianBlur(3, 1.0)), image(32)


TIMM = """resnet18 seresnet18 skresnet18 resnest14d ecaresnet26t res2net50_14w_8s hrnet_w18_small dla34 densenet121 inception_v4
mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_lite0 tf_efficientnetv2_b0 mixnet_s lcnet_050 ghostnet_050 regnety_002
rexnet_100 repvgg_a0 cspresnet50 nf_resnet26 dm_nfnet_f0 vovnet39a convnext_atto convnextv2_atto convit_tiny vit_tiny_patch16_224
deit_tiny_distilled_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 beit_base_patch16_224 eva02_tiny_patch14_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 twins_svt_small pit_ti_224 tnt_s_patch16_224 coat_tiny crossvit_tiny_240 levit_128s mixer_s16_224 gmlp_s16_224
resmlp_12_224 poolformer_s12 caformer_s18 pvt_v2_b0 mvitv2_tiny nest_tiny edgenext_xx_small mobilevit_xxs mobilevitv2_050 fastvit_t8
efficientformer_l1 efficientvit_b0 repvit_m0_9 tiny_vit_5m_224 maxvit_rmlp_nano_rw_256 coatnet_nano_rw_224 sequencer2d_s focalnet_tiny_srf
gcvit_xxtiny davit_tiny hiera_tiny_224 halonet26t lambda_resnet26t bat_resnext26ts volo_d1_224 swiftformer_xs
""".split()


def timm_models():
    import timm

    for name in TIMM:
        try:
            model = timm.create_model(name, pretrained=False, scriptable=True)
        except TypeError:
            model = timm.create_model(name, pretrained=False)
        except RuntimeError:
            continue
        if small(60_000_000, model):
            yield name, model, (torch.rand(1, *model.default_cfg["input_size"]),)


class First(nn.Module):
    """The first output of a model that returns an object of Python."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        found = self.model(*inputs)
        return next(iter(found.values())) if isinstance(found, dict) else found[0]


def transformers_models():
    """Tiny configurations, traced: most of these models cannot be scripted."""
    import transformers as tr

    text = torch.randint(5, 90, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    size = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, max_position_embeddings=64)

    def of(name, config, inputs):
        config = getattr(tr, config)(**inputs[0])
        config.use_cache = False
        for attention in ("sdpa", "eager"):
            try:
                config._attn_implementation = attention
                yield f"{name}_{attention}", First(getattr(tr, name)(config)), inputs[1]
            except Exception as error:  # A model that this version of transformers cannot make is not in the corpus.
                print(f"# {name}: {str(error)[:80]}", file=sys.stderr)

    for name, config, options, inputs in (
        ("BertModel", "BertConfig", size, (text, mask)),
        ("BertForSequenceClassification", "BertConfig", size, (text, mask)),
        ("BertForTokenClassification", "BertConfig", size, (text, mask)),
        ("RobertaModel", "RobertaConfig", size, (text, mask)),
        ("DistilBertModel", "DistilBertConfig", dict(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37), (text, mask)),
        ("AlbertModel", "AlbertConfig", dict(size, embedding_size=16), (text, mask)),
        ("ElectraModel", "ElectraConfig", dict(size, embedding_size=32), (text, mask)),
        ("MPNetModel", "MPNetConfig", size, (text, mask)),
        ("DebertaV2Model", "DebertaV2Config", dict(size, relative_attention=True, pos_att_type=["p2c", "c2p"]), (text, mask)),
        ("XLMRobertaModel", "XLMRobertaConfig", size, (text, mask)),
        ("GPT2LMHeadModel", "GPT2Config", dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64), (text,)),
        ("OPTModel", "OPTConfig", dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=37, max_position_embeddings=64, word_embed_proj_dim=32), (text, mask)),
        ("LlamaForCausalLM", "LlamaConfig", size, (text,)),
        ("MistralForCausalLM", "MistralConfig", dict(size, num_key_value_heads=2), (text,)),
        ("Qwen2ForCausalLM", "Qwen2Config", dict(size, num_key_value_heads=2), (text,)),
        ("GemmaForCausalLM", "GemmaConfig", dict(size, num_key_value_heads=2, head_dim=8), (text,)),
        ("PhiForCausalLM", "PhiConfig", size, (text,)),
        ("GPTNeoXForCausalLM", "GPTNeoXConfig", size, (text,)),
        ("BloomModel", "BloomConfig", dict(vocab_size=99, hidden_size=32, n_layer=2, n_head=4), (text, mask)),
        ("T5EncoderModel", "T5Config", dict(vocab_size=99, d_model=32, d_ff=37, num_layers=2, num_heads=4, d_kv=8), (text, mask)),
        ("T5ForConditionalGeneration", "T5Config", dict(vocab_size=99, d_model=32, d_ff=37, num_layers=2, num_heads=4, d_kv=8), (text, mask, text)),
        ("BartModel", "BartConfig", dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, max_position_embeddings=64), (text, mask, text)),
        ("ViTModel", "ViTConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, image_size=32, patch_size=8), image(32)),
        ("CLIPVisionModel", "CLIPVisionConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, image_size=32, patch_size=8), image(32)),
        ("CLIPTextModel", "CLIPTextConfig", size, (text, mask)),
        ("SegformerForSemanticSegmentation", "SegformerConfig", dict(hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=32), image(64)),
        ("Wav2Vec2Model", "Wav2Vec2Config", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, conv_dim=[32] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2), (torch.rand(1, 4000),)),
        ("HubertModel", "HubertConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, conv_dim=[32] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2), (torch.rand(1, 4000),)),
        ("WhisperModel", "WhisperConfig", dict(vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, max_source_positions=50, max_target_positions=64, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1), (torch.rand(1, 16, 100), torch.ones(1, 100, dtype=torch.long), text[:1])),
        ("DetrForObjectDetection", "DetrConfig", dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, use_pretrained_backbone=False, use_timm_backbone=True, backbone="resnet18"), image(64, 1)),
        ("YolosForObjectDetection", "YolosConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, image_size=[32, 32], patch_size=8, num_detection_tokens=5), image(32, 1)),
        ("TimeSeriesTransformerModel", "TimeSeriesTransformerConfig", dict(prediction_length=2, context_length=4, d_model=16), ()),
    ):
        if inputs:
            yield from of(name, config, (options, inputs))


class Recurrent(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rnn = getattr(nn, kind)(16, 8, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        found, _ = self.rnn(self.embed(tokens))
        return self.head(found)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return padded


class VoiceDetector(nn.Module):
    """Frames, a recurrent state that is kept, a probability: after silero-vad."""

    state: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.conv = nn.Conv1d(33, 16, 3, padding=1)
        self.cell = nn.LSTMCell(16, 16)
        self.out = nn.Linear(16, 1)
        self.register_buffer("state", torch.zeros(2, 1, 16))

    def forward(self, x: Tensor, rate: int = 16000) -> Tensor:
        if rate % 16000 == 0 and rate > 16000:
            x = x[:, :: rate // 16000]
        padded = nn.functional.pad(x, [32, 32], "reflect")
        found = torch.stft(padded, 64, 32, window=self.window, return_complex=True, center=False).abs()
        features = torch.relu(self.conv(found)).mean(-1)
        h, c = self.cell(features, (self.state[0].expand(x.size(0), -1), self.state[1].expand(x.size(0), -1)))
        self.state = torch.stack([h[:1], c[:1]]).detach()
        return torch.sigmoid(self.out(h))


class Mel(nn.Module):
    """The front end of speech models: spectrogram, mel filters, log, normalisation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("filters", torch.rand(16, 201))

    def forward(self, audio: Tensor) -> Tensor:
        found = torch.stft(audio, 400, 160, window=self.window, return_complex=True)
        power = torch.view_as_real(found[..., :-1]).pow(2).sum(-1)
        mel = torch.clamp(self.filters @ power, min=1e-10).log10()
        mel = torch.maximum(mel, mel.amax() - 8.0)
        again = torch.istft(found, 400, 160, window=self.window)
        return (mel + 4.0) / 4.0 + again.mean()


class Bags(nn.Module):
    def __init__(self, mode: str):
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 8, mode=mode)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(tokens, offsets))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, Optional[Tensor]]:
        return self.attention(x, x, x, key_padding_mask=mask)


class Decoder(nn.Module):
    """Greedy and sampled decoding with a cache: loops, lists, dicts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, memory: Tensor, steps: int = 4, sample: bool = False) -> Dict[str, Tensor]:
        tokens = torch.zeros(memory.size(0), 1, dtype=torch.long, device=memory.device)
        scores: List[Tensor] = []
        while tokens.size(1) < steps:
            length = tokens.size(1)
            mask = torch.triu(torch.full((length, length), float("-inf"), dtype=memory.dtype), diagonal=1)
            logits = self.head(self.layer(self.embed(tokens), memory, tgt_mask=mask))[:, -1]
            if sample:
                following = torch.multinomial(torch.softmax(logits, -1), 1)
            else:
                following = logits.argmax(-1, keepdim=True)
            scores.append(torch.log_softmax(logits, -1).gather(-1, following))
            tokens = torch.cat([tokens, following], dim=1)
            if bool((following == 1).all()):
                break
        return {"tokens": tokens, "scores": torch.cat(scores, 1)}


class BoxHead(nn.Module):
    """Detection after the network: scores, boxes, top k, non-maximum suppression in plain operators."""

    def forward(self, boxes: Tensor, scores: Tensor, threshold: float = 0.5) -> Tuple[Tensor, Tensor, Tensor]:
        best, labels = scores.max(dim=-1)
        keep = torch.where(best > 0.1)[0]
        top, order = torch.topk(best[keep], min(20, keep.numel()))
        chosen = boxes[keep][order]
        area = (chosen[:, 2] - chosen[:, 0]).clamp(min=0) * (chosen[:, 3] - chosen[:, 1]).clamp(min=0)
        low = torch.max(chosen[:, None, :2], chosen[None, :, :2])
        high = torch.min(chosen[:, None, 2:], chosen[None, :, 2:])
        overlap = (high - low).clamp(min=0).prod(-1)
        ratio = overlap / (area[:, None] + area[None] - overlap + 1e-6)
        alive = torch.ones(chosen.size(0), dtype=torch.bool)
        for at in range(chosen.size(0)):
            if bool(alive[at]):
                alive[at + 1:] &= ratio[at, at + 1:] < threshold
        return chosen[alive], top[alive], labels[keep][order][alive]


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        self.categories = nn.ModuleList([nn.Embedding(10, 4) for _ in range(3)])
        self.norm = nn.BatchNorm1d(5)
        self.body = nn.Sequential(nn.Linear(17, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 1))
        self.register_buffer("edges", torch.linspace(0, 1, 5))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        found = [embed(codes[:, at]) for at, embed in enumerate(self.categories)]
        numbers = torch.where(torch.isnan(numbers), self.mean, numbers)
        numbers = torch.nan_to_num(self.norm(numbers))
        bucket = torch.bucketize(numbers, self.edges).to(torch.float32).mean(1, keepdim=True)
        return self.body(torch.cat(found + [numbers], dim=1)) + bucket


class Graph(nn.Module):
    """Message passing with plain scatter operators."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 8)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x)
        out = torch.zeros_like(h)
        out = out.index_add(0, edges[1], h[edges[0]])
        degree = torch.zeros(x.size(0)).scatter_add_(0, edges[1], torch.ones(edges.size(1)))
        spread = torch.zeros_like(h).scatter_reduce(0, edges[1].unsqueeze(1).expand(-1, 8), h[edges[0]], "amax", include_self=False)
        values, counts = torch.unique(edges[1], return_counts=True)
        return out / degree.clamp(min=1).unsqueeze(1) + spread + torch.bincount(edges[1], minlength=x.size(0)).sum() + counts.max()


class Statistics(nn.Module):
    """What forecasts and anomaly scores compute."""

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        ordered, order = torch.sort(x, dim=-1)
        found = {
            "mean": x.mean(-1), "std": x.std(-1), "var": x.var(-1, unbiased=False), "median": x.median(-1)[0],
            "quantile": torch.quantile(x, 0.9, dim=-1), "kth": torch.kthvalue(x, 2)[0], "mode": torch.mode(x)[0],
            "cum": torch.cumsum(x, -1), "diff": torch.diff(x), "fft": torch.fft.rfft(x).abs(),
            "back": torch.fft.irfft(torch.fft.rfft(x), n=x.size(-1)), "norm": torch.linalg.norm(x, dim=-1),
            "dist": torch.cdist(x, x), "hist": torch.histc(x, 4), "first": ordered[:, 0], "order": order,
            "windows": x.unfold(-1, 2, 1).mean(-1), "roll": torch.roll(x, 1, -1), "flip": x.flip(-1),
            "covariance": torch.cov(x), "search": torch.searchsorted(ordered, x), "logsum": torch.logsumexp(x, -1),
            "nanmean": torch.nanmean(x), "trace": torch.einsum("ij,ij->i", x, x), "interp": torch.lerp(x, ordered, 0.5),
        }
        return found


class Algebra(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        square = a @ a.transpose(-1, -2) + torch.eye(a.size(-2))
        solved = torch.linalg.solve(square, b)
        inverse = torch.linalg.inv(square)
        lower = torch.linalg.cholesky(square)
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        values, vectors = torch.linalg.eigh(square)
        q, r = torch.linalg.qr(a)
        return solved.sum() + inverse.sum() + lower.sum() + s.sum() + values.sum() + r.sum() + torch.det(square) + torch.linalg.lstsq(square, b)[0].sum() + torch.linalg.pinv(a).sum()


class Text(nn.Module):
    """A tokenizer in TorchScript: strings, dicts and lists."""

    def __init__(self):
        super().__init__()
        self.vocabulary: Dict[str, int] = {"a": 1, "b": 2}

    @torch.jit.export
    def encode(self, text: str) -> List[int]:
        out: List[int] = []
        for word in text.lower().strip().split(" "):
            if word.startswith("#") or len(word) == 0:
                continue
            out.append(self.vocabulary.get(word, 0))
        return out

    def forward(self, x: Tensor) -> Tensor:
        words: List[str] = []
        values: List[float] = x.flatten().tolist()
        for value in values:
            words.append("a" if float(value) > 0.5 else "b")
        ids = self.encode(" ".join(words))
        seen: Dict[int, int] = {}
        for i in ids:
            if i in seen:
                seen[i] += 1
            else:
                seen[i] = 1
        pairs = [(-count, key) for key, count in seen.items()]
        pairs.sort()
        ids = sorted(ids)
        assert len(ids) == x.numel(), "one id for each value: {}".format(len(ids))
        return torch.tensor(ids, dtype=torch.int64).view(x.size(0), -1)


class Windows(nn.Module):
    """Sizes computed with % and //, as backbones with windows do."""

    def forward(self, x: Tensor, window: int = 4) -> Tensor:
        b, c, h, w = x.shape
        x = nn.functional.pad(x, (0, (window - w % window) % window, 0, (window - h % window) % window))
        h, w = x.size(2), x.size(3)
        x = x.view(b, c, h // window, window, w // window, window).permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, c)
        return x + math.sqrt(c) + float(h) / window


class Functions(nn.Module):
    """The functions of torch.nn.functional that the other models leave out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([
            nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.ELU(), nn.CELU(), nn.LeakyReLU(), nn.PReLU(),
            nn.ReLU6(), nn.RReLU(), nn.Softplus(), nn.Softsign(), nn.Tanhshrink(), nn.Threshold(0.1, 0.0), nn.LogSigmoid(),
            nn.Hardtanh(), nn.Hardshrink(), nn.Softshrink(), nn.Softmin(1), nn.Softmax2d(), nn.Dropout2d(), nn.InstanceNorm2d(4, affine=True),
            nn.GroupNorm(2, 4), nn.LocalResponseNorm(2), nn.LPPool2d(2, 2), nn.FractionalMaxPool2d(2, output_ratio=0.6),
            nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(2, stride=1, return_indices=False), nn.AdaptiveMaxPool2d(4), nn.ReflectionPad2d(1),
            nn.ReplicationPad2d(1), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.5), nn.CircularPad2d(1), nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Upsample(size=(9, 9), mode="bicubic", align_corners=False), nn.UpsamplingBilinear2d(scale_factor=2),
            nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
            nn.Identity(), nn.ChannelShuffle(2), nn.GLU(1), nn.Conv2d(2, 16, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.RMSNorm(8),
        ])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if not isinstance(layer, nn.RMSNorm) else nn.functional.adaptive_avg_pool2d(x, (8, 8))
        return nn.functional.rms_norm(x, [8])


class Spatial(nn.Module):
    def forward(self, x: Tensor, theta: Tensor) -> Tuple[Tensor, Tensor]:
        grid = nn.functional.affine_grid(theta, [x.size(0), x.size(1), 8, 8], align_corners=False)
        found = nn.functional.grid_sample(x, grid, align_corners=False)
        patches = nn.functional.unfold(found, 2)
        folded = nn.functional.fold(patches, (8, 8), 2)
        pooled, where = nn.functional.max_pool2d(folded, 2, return_indices=True)
        return nn.functional.max_unpool2d(pooled, where, 2), nn.functional.interpolate(x, scale_factor=0.5, mode="area")


class Half(nn.Module):
    """Converted dtypes, as exports for mixed precision have them."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x.to(torch.bfloat16)).float()
        mask = torch.zeros_like(y, dtype=torch.bool) | (y > 0)
        count = torch.arange(y.size(0), dtype=torch.int32, device=y.device).unsqueeze(1).type_as(y)
        return torch.masked_fill(y, mask, -1e9) + count + torch.ones([], dtype=torch.float64).to(y)


class Similarity(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        a, b = nn.functional.normalize(a), nn.functional.normalize(b)
        return a @ b.t(), nn.functional.cosine_similarity(a, b), nn.functional.pairwise_distance(a, b)


class Losses(nn.Module):
    """Scores that models return beside their answers."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        functional = nn.functional
        y = functional.one_hot(target, x.size(1)).float()
        return functional.cross_entropy(x, target) + functional.mse_loss(x, y) + functional.l1_loss(x, y) + functional.smooth_l1_loss(x, y) \
            + functional.binary_cross_entropy_with_logits(x, y) + functional.kl_div(x.log_softmax(1), y, reduction="batchmean") \
            + functional.nll_loss(x.log_softmax(1), target) + functional.huber_loss(x, y)


def torch_modules():
    tokens = torch.randint(0, 50, (2, 7))
    for kind in ("LSTM", "GRU", "RNN"):
        yield f"recurrent_{kind.lower()}", Recurrent(kind), (tokens,)
    yield "packed", Packed(), (torch.rand(2, 5, 4), torch.tensor([5, 3]))
    for batch_first in (True, False):
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        yield f"encoder_{batch_first}", nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first), (torch.rand(2, 6, 16),)
    yield "transformer", nn.Transformer(16, 4, 1, 1, 32, batch_first=True), (torch.rand(2, 5, 16), torch.rand(2, 6, 16))
    yield "attention", Attention(), (torch.rand(2, 6, 16),)
    yield "decoder", Decoder(), (torch.rand(2, 5, 16),)
    for mode in ("sum", "mean", "max"):
        yield f"bag_{mode}", Bags(mode), (torch.randint(0, 100, (9,)), torch.tensor([0, 4, 6]))
    yield "functions", Functions(), (torch.rand(2, 4, 32, 32),)
    yield "spatial", Spatial(), (torch.rand(2, 3, 8, 8), torch.rand(2, 2, 3))
    yield "same", nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding="valid"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), (torch.rand(1, 3, 8, 8),)
    yield "old_weight_norm", torch.nn.utils.weight_norm(nn.Linear(4, 4)), (torch.rand(2, 4),)
    yield "spectral_norm", torch.nn.utils.spectral_norm(nn.Linear(4, 4)), (torch.rand(2, 4),)
    yield "bilinear", nn.Bilinear(4, 5, 6), (torch.rand(2, 4), torch.rand(2, 5))
    yield "conv1d", nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(8, 4, 3), nn.AdaptiveAvgPool1d(2)), (torch.rand(2, 3, 20),)
    yield "conv3d", nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(8, 4, 3), nn.AdaptiveAvgPool3d(2)), (torch.rand(2, 3, 10, 10, 10),)


def tasks():
    yield "voice", VoiceDetector(), (torch.rand(1, 512),)
    yield "mel", Mel(), (torch.rand(2, 1600),)
    yield "boxes", BoxHead(), (torch.rand(30, 4), torch.rand(30, 3))
    yield "tabular", Tabular(), (torch.rand(3, 5), torch.randint(0, 10, (3, 3)))
    yield "graph", Graph(), (torch.rand(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    yield "statistics", Statistics(), (torch.rand(3, 5),)
    yield "algebra", Algebra(), (torch.rand(4, 4), torch.rand(4, 1))
    yield "text", Text(), (torch.rand(2, 3),)
    yield "windows", Windows(), (torch.rand(1, 3, 10, 13),)
    yield "half", Half(), (torch.rand(2, 4),)
    yield "similarity", Similarity(), (torch.rand(3, 4), torch.rand(3, 4))
    yield "losses", Losses(), (torch.rand(3, 4), torch.tensor([0, 1, 2]))
    yield "ranking", nn.Sequential(nn.EmbeddingBag(20, 8, mode="sum"), nn.LayerNorm(8), nn.Linear(8, 1), nn.Sigmoid()), (torch.randint(0, 20, (3, 4)),)


def committed():
    """The models of this repository, as they are."""
    import pathlib

    root = pathlib.Path(__file__).resolve().parents[2]
    for path in sorted(root.glob("models/*/*/model.pt")):
        yield "_".join(path.relative_to(root).parts[:-1]), torch.jit.load(path), None


FAMILIES = {
    "repository": committed,
    "modules": torch_modules,
    "tasks": tasks,
    "torchvision": torchvision_classifiers,
    "vision_dense": torchvision_dense,
    "detection": torchvision_detection,
    "transforms": torchvision_transforms,
    "transformers": transformers_models,
    "timm": timm_models,
}
