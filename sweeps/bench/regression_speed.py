"""Speed of linear attention's training beside the plain PyTorch loop of the same work, in processor time.

The work: setting 1 (d=5, n=20, L=3, sparse form), every step draws 1000 fresh prompts, takes the gradient of the
squared error, clips it by the global norm and takes a step of Adam. PyTorch: eager, Z as (1000, 6, 21), attention by
its definition P Z M (Z^T Q Z), autograd, torch.optim.Adam, one thread. jaxsign: the loop of `js.run_sweep` on one run,
through the Gram matrix of each context. Both take turns; the least processor time of REPEATS counts, since another user
of the machine only adds to it. Losses of the same weights on the same prompts must agree to TOLERANCE before anything
is timed.

Command: python sweeps/bench/regression_speed.py    (PyTorch: pip install -e '.[bench]')
Cost: under a minute. Prints milliseconds of processor time a step and their ratio.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsign as js

STEPS, REPEATS, TOLERANCE = 100, 5, 1e-4
RATE = 0.005


def torch_forward(z, weights, width):
    """Predictions of the linear transformer by its definition."""
    import torch

    n = z.shape[2] - 1
    mask = torch.diag(torch.cat([torch.ones(n), torch.zeros(1)]))
    for p, q in zip(*weights):
        whole_p, whole_q = torch.zeros(width, width), torch.zeros(width, width)
        whole_p[:-1, :-1], whole_q[:-1, :-1] = p, q
        whole_p[-1, -1] = 1
        z = z + whole_p @ z @ mask @ (z.transpose(1, 2) @ whole_q @ z) / n
    return -z[:, -1, -1]


def torch_trainer(problem, params):
    """A function that trains for a number of steps from the start."""
    import torch

    def prompts():
        x = torch.randn(problem.batch_size, problem.n_context + 1, problem.d)
        w = torch.randn(problem.batch_size, problem.d)
        y = (x * w[:, None]).sum(-1)
        z = torch.cat([x, y[..., None]], -1).transpose(1, 2).clone()
        target = z[:, -1, -1].clone()
        z[:, -1, -1] = 0
        return z, target

    def train(steps):
        weights = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in params]
        optimizer = torch.optim.Adam(weights, lr=RATE, betas=(0.9, 0.9))
        for _ in range(steps):
            z, target = prompts()
            optimizer.zero_grad()
            loss = ((torch_forward(z, weights, problem.width) - target) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        return loss.item()

    return train


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        import torch
    except ImportError:
        print("regression_speed: PyTorch is needed: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    problem, hyper = js.RegressionProblem(), js.RegressionHyper()
    task, key = js.linear_attention(problem), jax.random.key(0)
    data = task.sample(js.stream(key, "data"), hyper)
    params = task.init(js.stream(key, "init"), data, hyper)

    z = torch.from_numpy(np.array(jnp.moveaxis(data.matrix(), -1, 0)))
    theirs = torch_forward(z, [torch.from_numpy(np.array(w)) for w in params], problem.width)
    mine, other = float(task.loss(params, data, hyper)), float(((theirs.numpy() - np.asarray(data.target)) ** 2).mean())
    if abs(mine - other) > TOLERANCE * other:
        print(f"regression_speed: losses differ, jaxsign {mine:g}, PyTorch {other:g}", file=sys.stderr)
        return 1

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE, b1=0.9, b2=0.9))

    def jaxsign_train(steps):
        run = js.train(key, task, hyper, optimizer, steps=steps, record=steps, observables=["train_loss"])
        return float(run.trace["train_loss"][-1])

    contenders = {"PyTorch": torch_trainer(problem, params), "jaxsign": jaxsign_train}
    least = dict.fromkeys(contenders, np.inf)
    for train in contenders.values():
        train(STEPS)  # compilation, and threads that start
    for _ in range(REPEATS):
        for name, train in contenders.items():
            before = time.process_time()
            last = train(STEPS)
            least[name] = min(least[name], (time.process_time() - before) / STEPS)
            if not np.isfinite(last):
                raise FloatingPointError(f"the {name} run diverged")
    for name, seconds in least.items():
        print(f"{name:8s} {1e3 * seconds:6.2f} ms of processor time a step")
    print(f"jaxsign is {least['PyTorch'] / least['jaxsign']:.1f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
