"""What theory says of a loss before anything is trained. Pure: numbers in (float64), numbers out.

    weights.py  any loss: its gradient per side by autograd, stationary margins, optimum; closed forms of dL/dh
    growth.py   from the gradient alone: the margin's growth under SGD, momentum, weight decay, Adam, RMSprop
    bandit.py   a softmax over V actions: gradient flow of any loss, IPO's optimum on any graph, the exact frontier

Symbols and units everywhere: a, b log-ratios of chosen and rejected [nats]; h = a - b margin [nats]; beta [1];
u = beta h [1]; L1 = dL/dh [1/nat]; eta step size; t optimiser updates [1]; K = |grad_theta h|^2; tau = IPO's beta.
"""
