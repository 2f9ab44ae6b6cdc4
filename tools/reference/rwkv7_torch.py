"""RWKV-7 (x070) and its official training recipe, written plainly in PyTorch.

It exists to be compared with, so it follows the formulas one by one and shares no code with rwkv.
Letters: B batch, T tokens, C width, H heads, N head size, V vocabulary.
"""
import math

import torch
import torch.nn.functional as F

C0 = math.exp(-0.5)


class Wkv7(torch.autograd.Function):
    """y_t = S_t r_t,  S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T,  S_0 = 0.

    Inputs and output are [T, BH, N]; the first index of S is the value channel, the second the key
    channel. The backward pass is the recurrence read backwards, with G_t = dl/dS_t.
    """

    @staticmethod
    def forward(ctx, r, w, k, v, a, b):
        T, BH, N = r.shape
        S = r.new_zeros(T + 1, BH, N, N)
        u = torch.empty_like(r)
        for t in range(T):
            u[t] = torch.bmm(S[t], a[t].unsqueeze(2)).squeeze(2)
            left, right = torch.stack((u[t], v[t]), 2), torch.stack((b[t], k[t]), 1)
            S[t + 1] = torch.baddbmm(S[t] * w[t].unsqueeze(1), left, right)
        ctx.save_for_backward(r, w, k, v, a, b, u, S)
        return torch.einsum("tzij,tzj->tzi", S[1:], r)

    @staticmethod
    def backward(ctx, dy):
        r, w, k, v, a, b, u, S = ctx.saved_tensors
        G = torch.empty_like(S[1:])
        du = torch.empty_like(u)
        later = torch.zeros_like(S[0])
        for t in reversed(range(dy.shape[0])):
            G[t] = torch.baddbmm(later, dy[t].unsqueeze(2), r[t].unsqueeze(1))
            du[t] = torch.bmm(G[t], b[t].unsqueeze(2)).squeeze(2)
            later = torch.baddbmm(G[t] * w[t].unsqueeze(1), du[t].unsqueeze(2), a[t].unsqueeze(1))
        dr = torch.einsum("tzij,tzi->tzj", S[1:], dy)
        dw = (G * S[:-1]).sum(2)
        dk = torch.einsum("tzij,tzi->tzj", G, v)
        dv = torch.einsum("tzij,tzj->tzi", G, k)
        db = torch.einsum("tzij,tzi->tzj", G, u)
        da = torch.einsum("tzij,tzi->tzj", S[:-1], du)
        return dr, dw, dk, dv, da, db


class LossWithL2Wrap(torch.autograd.Function):
    """Mean cross entropy; L2Wrap adds 1e-4 max / (B T) to the gradient at each row's first argmax,
    and nothing to the loss that is reported."""

    @staticmethod
    def forward(ctx, logits, targets, l2wrap):
        rows = torch.arange(len(targets))
        top, where = logits.max(1)
        exp = torch.exp(logits - top.unsqueeze(1))
        total = exp.sum(1)
        loss = total.log() + top - logits[rows, targets]
        grad = exp.div_(total.unsqueeze(1))
        grad[rows, targets] -= 1
        if l2wrap:
            grad[rows, where] += 1e-4 * top
        ctx.save_for_backward(grad)
        return loss.double().mean()

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad.mul_(upstream.to(grad.dtype) / len(grad)), None, None


def shift(x):
    """The row before each row; zeros before the first. x: [B, T, C]"""
    return F.pad(x, (0, 0, 1, -1))


def layer_norm(x, p, name):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], 1e-5)


def time_mix(z, p, v_first):
    """p: the tensors of one layer's att, by their names below `blocks.i.att.`"""
    B, T, C = z.shape
    H, N = p["r_k"].shape
    d = shift(z) - z
    m = {s: z + d * p["x_" + s] for s in "rwkvag"}

    r = m["r"] @ p["receptance.weight"].T
    k0 = m["k"] @ p["key.weight"].T
    v = m["v"] @ p["value.weight"].T
    omega = p["w0"] + torch.tanh(m["w"] @ p["w1"]) @ p["w2"]
    w = torch.exp(-C0 * torch.sigmoid(omega))
    a = torch.sigmoid(p["a0"] + (m["a"] @ p["a1"]) @ p["a2"])
    g = torch.sigmoid(m["g"] @ p["g1"]) @ p["g2"]
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * torch.sigmoid(p["v0"] + (m["v"] @ p["v1"]) @ p["v2"])
    kappa = F.normalize((k0 * p["k_k"]).view(B, T, H, N), dim=-1, eps=1e-12).view(B, T, C)
    k = k0 * (1 + (a - 1) * p["k_a"])

    def heads(x):  # [B, T, C] to [T, BH, N]
        return x.view(B, T, H, N).permute(1, 0, 2, 3).reshape(T, B * H, N)

    y = Wkv7.apply(heads(r), heads(w), heads(k), heads(v), heads(-kappa), heads(kappa * a))
    y = y.view(T, B, C).transpose(0, 1).reshape(B * T, C)
    y = F.group_norm(y, H, p["ln_x.weight"], p["ln_x.bias"], 64e-5).view(B, T, C)
    bonus = (r * k * p["r_k"].view(C)).view(B, T, H, N).sum(3, keepdim=True)
    y = y + (bonus * v.view(B, T, H, N)).view(B, T, C)
    return (y * g) @ p["output.weight"].T, v_first


def channel_mix(z, p):
    m = z + (shift(z) - z) * p["x_k"]
    return torch.relu(m @ p["key.weight"].T) ** 2 @ p["value.weight"].T


def below(params, prefix):
    return {n[len(prefix):]: t for n, t in params.items() if n.startswith(prefix)}


def count_layers(params):
    return 1 + max(int(n.split(".")[1]) for n in params if n.startswith("blocks."))


def forward(params, idx):
    """idx [B, T] to logits [B, T, V], every sequence from a zero state."""
    x = layer_norm(F.embedding(idx, params["emb.weight"]), params, "blocks.0.ln0")
    v_first = None
    for i in range(count_layers(params)):
        block = f"blocks.{i}."
        att, v_first = time_mix(layer_norm(x, params, block + "ln1"),
                                below(params, block + "att."), v_first)
        x = x + att
        x = x + channel_mix(layer_norm(x, params, block + "ln2"), below(params, block + "ffn."))
    return layer_norm(x, params, "ln_out") @ params["head.weight"].T


def loss_and_grads(params, idx, targets, l2wrap=True):
    """The loss, and {name: gradient or None} (None for layer 0's v0, v1, v2, which nobody reads)."""
    logits = forward(params, idx)
    loss = LossWithL2Wrap.apply(logits.view(-1, logits.shape[-1]), targets.reshape(-1), l2wrap)
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return loss.item(), dict(zip(params, grads))


def load_weights(path, dtype=torch.float32):
    """Official names to tensors of `dtype` that want gradients, from .pth or .safetensors."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file
        params = load_file(path)
    else:
        params = torch.load(path, map_location="cpu", weights_only=True)
    return {n.removeprefix("_forward_module."): t.to(dtype).clone().requires_grad_()
            for n, t in params.items()}


def optimizer_group(name, tensor):
    """(lr factor, whether weight decay applies)"""
    if "att.w0" in name:
        return 2.0, False
    return 1.0, ".weight" in name and sum(n != 1 for n in tensor.shape) >= 2


class AdamW:
    """FusedAdam's AdamW: decay is decoupled and scaled by the learning rate, eps is outside the root
    and tiny: clipping at 1 with an initial gradient norm near 1000 makes most gradients tiny."""

    def __init__(self, params, betas=(0.9, 0.99), eps=1e-18, weight_decay=0.001, clip=1.0):
        self.betas, self.eps, self.weight_decay, self.clip = betas, eps, weight_decay, clip
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in params.items()}
        self.t = 0

    @torch.no_grad()
    def step(self, params, grads, lr):
        """Returns the gradient norm before clipping."""
        grads = {n: g for n, g in grads.items() if g is not None}
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
        scale = min(1.0, self.clip / (norm + 1e-6))
        self.t += 1
        b1, b2 = self.betas
        for name, g in grads.items():
            p, (m, v) = params[name], self.moments[name]
            g = g * scale
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            factor, decays = optimizer_group(name, p)
            update = (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt_() + self.eps)
            if decays:
                update += self.weight_decay * p
            p.sub_(update, alpha=lr * factor)
        return norm


def learning_rate(step, lr_init, lr_final, warmup, exit_tokens, tokens_per_step):
    """Cosine by tokens, with a linear warm-up from 1 % on top."""
    past = (step - warmup) * tokens_per_step
    progress = min(max(past / (exit_tokens - warmup * tokens_per_step), 0.0), 1.0)
    f = lr_final / lr_init
    lr = lr_init * ((0.5 + f / 2) + (0.5 - f / 2) * math.cos(math.pi * progress))
    return lr * (0.01 + 0.99 * step / warmup) if step < warmup else lr


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def magic_prime(num_tokens, ctx):
    return next(p for p in range(num_tokens // ctx - 1, 0, -1) if p % 3 == 2 and is_prime(p))


def sample_offset(sample, prime, ctx):
    """Where sample 0, 1, 2, … of the run begins, in tokens; it is ctx + 1 tokens long."""
    factor = int(prime * (math.sqrt(5) - 1) / 2)
    return factor * (sample + 1) ** 3 % prime * ctx
