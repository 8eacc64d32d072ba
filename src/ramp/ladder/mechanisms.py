"""The part that each rung adds, in a few lines of NumPy that anybody can run.

They compute what the model computes, for one row of tokens and without devices: tests/ladder
compares each with the model's own code. `ramp ladder exercise` takes the lines out, all but the
comments, and `ramp ladder check` compares what a reader writes with what stands here.

A row has T tokens. Each has a vector of D numbers, so x is an array [T, D]. The w's are matrices of
learned weights. H heads have h numbers each, a feed-forward layer has F units.
"""

import numpy as np
from numpy import ndarray


def unigram_bits(text: bytes) -> float:
    """Return the bits per byte of a text when each byte is guessed by how common it is.

    A byte that was given the probability p costs log2(1/p) bits: 0 if it was certain, 1 if it
    was like a coin, 8 if all 256 bytes were equally likely.

    >>> round(unigram_bits(b"banana"), 3)  # a: 1 bit, three times; n: 1.58, twice; b: 2.58
    1.459
    """
    # How often each byte occurs, and so how likely it is.
    codes = np.frombuffer(text, np.uint8)
    p = np.bincount(codes, minlength=256) / len(codes)
    # What each byte of the text costs, on average.
    return float(np.mean(np.log2(1 / p[codes])))


def bigram_bits(text: bytes) -> float:
    """Return the bits per byte, without the first, when each is guessed by the byte before it.

    >>> bigram_bits(b"banana")  # after b comes a, after a comes n, after n comes a: no doubt left
    0.0
    >>> round(bigram_bits(b"bananas"), 3)  # after a comes n twice and s once
    0.459
    """
    # How often each byte follows each other byte: row = the last byte, column = the next one.
    codes = np.frombuffer(text, np.uint8)
    counts = np.zeros((256, 256))
    np.add.at(counts, (codes[:-1], codes[1:]), 1)
    # Each row divided by its sum: the probabilities of what comes next.
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(np.mean(np.log2(1 / p[codes[:-1], codes[1:]])))


def softmax(scores: ndarray) -> ndarray:
    """Turn scores into probabilities along the last axis: none negative, and their sum is 1.

    >>> softmax(np.array([0.0, 0.0, np.log(2)])).round(2).tolist()
    [0.25, 0.25, 0.5]
    """
    # The largest score is taken off first: it changes nothing, and exp cannot overflow.
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def learn_bigrams(table: ndarray, last: ndarray, following: ndarray) -> tuple[float, ndarray]:
    """Return the loss of a table of scores [V, V] on N pairs of tokens, and its gradient [V, V].

    The loss is the mean of log(1/p) over the pairs, in nats (1 nat = 1.44 bits); p is the
    probability that softmax of row `last` gives to `following`. A step of learning takes a little
    of the gradient off the table.

    >>> loss, gradient = learn_bigrams(np.zeros((2, 2)), np.array([0]), np.array([1]))
    >>> gradient.tolist()  # raises the score of 1 after 0, lowers that of 0 after 0
    [[0.5, -0.5], [0.0, 0.0]]
    """
    pairs = np.arange(len(last))
    # The probabilities of all tokens after each `last`, [N, V], and of the one that came.
    p = softmax(table[last])
    loss = float(np.mean(np.log(1 / p[pairs, following])))
    # For each pair: what was predicted, minus 1 at what came; a mean, like the loss.
    error = p / len(last)
    error[pairs, following] -= 1 / len(last)
    # Pairs with the same `last` add up in the same row.
    gradient = np.zeros_like(table)
    np.add.at(gradient, last, error)
    return loss, gradient


def mix_window(x: ndarray, w: ndarray) -> ndarray:
    """Return [T, D]: a sum over the last K tokens, a matrix for each place; w: [K, D, D].

    w[0] is for the token itself, w[1] for the one before it. The start of a row has nothing
    before it: there the first token stands in.

    >>> mix_window(np.array([[1.0], [2.0], [4.0]]), np.array([[[1.0]], [[10.0]]])).tolist()
    [[11.0], [12.0], [24.0]]
    """
    y = np.zeros_like(x)
    for back in range(len(w)):
        # The vectors so many places back, each multiplied with that place's matrix.
        places = np.maximum(np.arange(len(x)) - back, 0)
        y = y + x[places] @ w[back]
    return y


def mean_of_past(x: ndarray, wv: ndarray, wo: ndarray) -> ndarray:
    """Return [T, D]: at each place the mean of the values of all tokens so far, times wo.

    >>> one = np.ones((1, 1))
    >>> mean_of_past(np.array([[1.0], [3.0], [8.0]]), one, one).tolist()
    [[1.0], [2.0], [4.0]]
    """
    values = x @ wv
    # The sum of the first 1, 2, ... T values, divided by how many they are.
    count = np.arange(1, len(x) + 1)[:, None]
    return np.cumsum(values, axis=0) / count @ wo


def attend(x: ndarray, wq: ndarray, wk: ndarray, wv: ndarray, wo: ndarray) -> ndarray:
    """Return [T, D]: at each place a mean of the values so far, weighted by query and key.

    wq, wk and wv, [D, h], make queries, keys and values; wo, [h, D], makes the answer a vector of
    the row again.

    >>> same = np.eye(2)
    >>> x = np.array([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    >>> attend(x, same, same, same, same).round(1).tolist()  # the third finds the first and itself
    [[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]]
    """
    # What each token looks for, what it can be found by, and what it hands over.
    q, k, v = x @ wq, x @ wk, x @ wv
    # How well each query (row) fits each key (column), over the root of their length h.
    scores = q @ k.T / np.sqrt(q.shape[1])
    # Nothing looks at what comes after it: those scores become minus infinity.
    future = np.triu(np.ones(scores.shape, bool), 1)
    scores = np.where(future, -np.inf, scores)
    # Each row of scores becomes weights with sum 1, and the weights a mean of values.
    return softmax(scores) @ v @ wo


def rotate(x: ndarray, base: float = 10_000) -> ndarray:
    """Return queries or keys [T, h], each turned by its place in the row: RoPE.

    Numbers i and i + h/2 are the two coordinates of a point. At place t (from 0) it is turned by
    the angle t * base ** (-2i / h): the first point turns fast, the last one slowly.

    >>> rotate(np.array([[1.0, 0.0], [1.0, 0.0]])).round(2).tolist()
    [[1.0, 0.0], [0.54, 0.84]]
    """
    T, h = x.shape
    # The angle of each place (row) for each point (column).
    speed = base ** (-np.arange(0, h, 2) / h)
    angle = np.arange(T)[:, None] * speed
    # (a, b) turned by an angle is (a cos - b sin, a sin + b cos).
    a, b = x[:, : h // 2], x[:, h // 2 :]
    turned = (a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle))
    return np.concatenate(turned, axis=1)


def attend_heads(
    x: ndarray, wq: ndarray, wk: ndarray, wv: ndarray, wo: ndarray, heads: int
) -> ndarray:
    """Return [T, D]: attention with several heads, each with its own part of the numbers.

    wq, wk and wv are [D, H*h]: the first h columns are those of the first head, and so on. wo is
    [H*h, D].

    >>> x, w = np.eye(4), np.eye(4)
    >>> attend_heads(x, w, w, w, w, 2)[1].round(2).tolist()  # its second head reads zeros
    [0.33, 0.67, 0.0, 0.0]
    """
    h = wq.shape[1] // heads
    y = []
    for i in range(heads):
        # The columns of this head, and what it finds.
        own = slice(i * h, (i + 1) * h)
        q, k, v = x @ wq[:, own], x @ wk[:, own], x @ wv[:, own]
        scores = q @ k.T / np.sqrt(h)
        # Nothing looks at what comes after it.
        future = np.triu(np.ones(scores.shape, bool), 1)
        y.append(softmax(np.where(future, -np.inf, scores)) @ v)
    # Side by side again, then mixed.
    return np.concatenate(y, axis=1) @ wo


def feed_forward(x: ndarray, w_up: ndarray, w_down: ndarray) -> ndarray:
    """Return [T, D]: each token by itself through F units; w_up: [D, F], w_down: [F, D].

    A unit is 0 where its input is negative, and the square of it elsewhere.

    >>> one = np.ones((1, 1))
    >>> feed_forward(np.array([[-3.0], [3.0]]), one, one).tolist()
    [[0.0], [9.0]]
    """
    # Negative inputs become 0, the others are squared.
    units = np.maximum(x @ w_up, 0) ** 2
    # A weighted sum of the units for each of the D numbers.
    return units @ w_down


def run_blocks(x: ndarray, blocks: list) -> ndarray:
    """Return [T, D]: the row after several blocks, each attention and then a feed-forward layer.

    blocks: for each block what `attend_heads` and what `feed_forward` take behind x. What a part
    finds is added to the vectors that it read (the residual stream); nothing is replaced.

    >>> silent = (np.zeros((1, 1)), np.zeros((1, 1)))
    >>> nothing = (*silent, *silent, 1)
    >>> run_blocks(np.array([[5.0]]), [(nothing, silent)] * 4).tolist()  # what came in is kept
    [[5.0]]
    """
    for heads, layer in blocks:
        # First what attention finds is added, then what the layer makes of that sum.
        x = x + attend_heads(x, *heads)
        x = x + feed_forward(x, *layer)
    return x


def rms_norm(x: ndarray, gain: ndarray) -> ndarray:
    """Return [T, D]: each vector divided by its size, the root of its mean square, times `gain`.

    1e-6 is added to the mean square, so that a vector of zeros does not divide by zero.

    >>> rms_norm(np.array([[3.0, 4.0], [300.0, 400.0]]), np.ones(2)).round(2).tolist()
    [[0.85, 1.13], [0.85, 1.13]]
    """
    # One size for each token, over its own numbers.
    size = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    return x / size * gain


def score_normed(q: ndarray, k: ndarray, q_gain: ndarray, k_gain: ndarray) -> ndarray:
    """Return scores [T, T] of queries and keys [T, h] that are normalised first: QK-norm.

    However large queries and keys grow, with gains of 1 no score is above the root of h.

    >>> q = np.array([[100.0, 0.0]])
    >>> score_normed(q, q, np.ones(2), np.ones(2)).round(2).tolist()  # 7071 without
    [[1.41]]
    """
    # Each query and each key over its own size, times the gains.
    q, k = rms_norm(q, q_gain), rms_norm(k, k_gain)
    # The product of each query (row) with each key (column), over the root of their length h.
    return q @ k.T / np.sqrt(q.shape[1])


def swiglu(x: ndarray, w_gate: ndarray, w_up: ndarray, w_down: ndarray) -> ndarray:
    """Return [T, D]: a feed-forward layer in which one product switches the other on and off.

    The switch of an input a is a / (1 + exp(-a)): near 0 for negative a, near a for positive.

    >>> one = np.ones((1, 1))
    >>> swiglu(np.array([[-20.0], [20.0]]), one, one, one).round(3).tolist()
    [[0.0], [400.0]]
    """
    # The input of each switch, and how far it is open.
    a = x @ w_gate
    switch = a / (1 + np.exp(-a))
    # Unit by unit, the switch times what it switches.
    return switch * (x @ w_up) @ w_down


def attend_groups(q: ndarray, k: ndarray, v: ndarray) -> ndarray:
    """Return [T, H, h]: attention in which several heads read the same keys and values.

    q: [T, H, h]; k and v: [T, K, h] with fewer heads, H = K * G. The first G heads of q read the
    first head of k and v, the next G the second.

    >>> q = k = v = np.ones((3, 1, 2))
    >>> attend_groups(np.ones((3, 4, 2)), k, v).shape
    (3, 4, 2)
    """
    T, H, h = q.shape
    group = H // k.shape[1]
    future = np.triu(np.ones((T, T), bool), 1)
    y = []
    for i in range(H):
        # The head of k and v that head i of q reads.
        j = i // group
        scores = np.where(future, -np.inf, q[:, i] @ k[:, j].T / np.sqrt(h))
        y.append(softmax(scores) @ v[:, j])
    return np.stack(y, axis=1)


def orthogonalize(gradient: ndarray) -> ndarray:
    """Return the step that Muon takes for a matrix [D, F]: the same directions, all equally long.

    Any matrix is u @ diag(sizes) @ vt, where u and vt turn vectors and leave their lengths (its
    singular value decomposition). Here all sizes become 1. A matrix with more columns than rows
    takes sqrt(F/D) times that.

    >>> step = orthogonalize(np.array([[5.0, 4.0], [4.0, 5.0]]))  # sizes 9 and 1
    >>> (np.array([[1.0, 1.0], [1.0, -1.0]]) @ step).round(2).tolist()  # both move as far
    [[1.0, 1.0], [1.0, -1.0]]
    """
    D, F = gradient.shape
    # The sizes are left out, and so all become 1.
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    return u @ vt * np.sqrt(max(1, F / D))


def add_values(x: ndarray, values: ndarray, rows: ndarray, gate: ndarray) -> ndarray:
    """Return values [T, K, h] plus a gated row of a table, which the token itself chooses.

    rows: [T, K, h], the table's row for each token; gate: [C, K], reads the first C numbers of x
    and opens each head between 0 and 2: twice 1 / (1 + exp(-a)).

    >>> add_values(np.zeros((1, 4)), np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones((4, 1)))
    array([[[2., 2.]]])
    """
    # How far the gate of each token and head is open, [T, K].
    a = x[:, : len(gate)] @ gate
    opening = 2 / (1 + np.exp(-a))
    return values + opening[:, :, None] * rows


def mix_embedding(x: ndarray, x0: ndarray, resid_scale: float, x0_scale: float) -> ndarray:
    """Return [T, D]: the stream and the embedding it began with, each times a learned number.

    >>> mix_embedding(np.array([[10.0]]), np.array([[1.0]]), 1.0, 0.5).tolist()
    [[10.5]]
    """
    # Each has a factor of its own.
    return resid_scale * x + x0_scale * x0


def near_mask(T: int, window: int) -> ndarray:
    """Return [T, T], True where a query (row) may read a key (column): at most `window` of them.

    Those are its own place and the window - 1 before it.

    >>> near_mask(4, 2).astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    # How far back each key lies behind each query; negative: it comes after.
    back = np.arange(T)[:, None] - np.arange(T)[None, :]
    # Neither after the query nor too far before it.
    return (back >= 0) & (back < window)


# Beyond pretraining


def answer_loss(scores: ndarray, tokens: ndarray, asked: int) -> float:
    """Return the mean loss of the answer in a row, in nats; the question bears none.

    scores: [T, V], what the model says after each token; tokens: [T], of which the first `asked`
    are the question. The model learns to answer, not to ask.

    >>> sure = np.log([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])  # 0 or 1 comes next
    >>> round(answer_loss(sure, np.array([0, 0, 1]), asked=2), 2)  # log 2: the answer had .5
    0.69
    """
    # Scores stand one place before the token that they are about.
    p = softmax(scores[asked - 1 : -1])
    answer = tokens[asked:]
    return float(np.mean(np.log(1 / p[np.arange(len(answer)), answer])))


def compare_with_others(rewards: ndarray) -> ndarray:
    """Return the advantages [P, G] of G solutions of each of P problems, from their rewards.

    The advantage of a solution is its reward minus the mean reward of the others of its problem
    (RLOO, Ahmadian et al. 2024). The gradient of its tokens is multiplied by it: below 0 they
    become less likely.

    >>> compare_with_others(np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).tolist()
    [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0]]
    """
    G = rewards.shape[1]
    # The sum of all without the solution itself, divided by how many others there are.
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (G - 1)
    # Better than the others is positive.
    return rewards - others


def compare_steps(right: ndarray) -> ndarray:
    """Return the advantage [G, K] of each of K steps in G solutions of one problem.

    right: [G, K], 1 where a step follows from what stands before it. A step is compared with the
    same step of the G - 1 others, and with the mean of all their steps as if it were one more of
    them, which steadies the comparison where they are few: the sum of the G numbers, divided by G.

    >>> compare_steps(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])).round(3).tolist()
    [[0.583, 0.917], [0.5, -0.5], [-0.917, -0.583]]
    """
    G = len(right)
    # What the others have at each step, summed, and their mean over all steps.
    others = right.sum(axis=0) - right
    mean = others.mean(axis=1, keepdims=True) / (G - 1)
    return right - (others + mean) / G


def keep_right(digits: ndarray, steps: ndarray) -> ndarray:
    """Return the rows [M, n + K] of the solutions that are right in every step, in their order.

    digits: [N, n]; steps: [N, K], K = n - 1. A step adds the next digit to what was stated last,
    modulo 5. A right answer after a wrong step is luck, and is not kept.

    >>> keep_right(np.array([[3, 4, 1], [3, 4, 1]]), np.array([[2, 3], [1, 3]])).tolist()
    [[3, 4, 1, 2, 3]]
    """
    # What each step goes on from: the first digit, and after it what was stated.
    before = np.concatenate([digits[:, :1], steps[:, :-1]], axis=1)
    # Which steps are the sum that they should be, [N, K].
    right = steps == (before + digits[:, 1:]) % 5
    # Digits and steps side by side, of the solutions without a wrong step.
    return np.concatenate([digits, steps], axis=1)[right.all(axis=1)]


STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.95])  # shares of a capital that are bet


def weigh_evidence(worse: ndarray) -> float:
    """Return the log of the largest capital of bets that things got worse, at least 0.

    worse: [N], what each text costs more than is allowed, in a unit of several usual differences
    and cut at -1, so that no bet can lose more than it stakes. A stake l, one of STAKES, turns a
    capital c into c * (1 + l * worse), and each has an equal part of the first capital. Where the
    mean of `worse`, cut as it is, is not above 0, capital does not grow on average, and reaches
    1000 with a chance of at most 1 in 1000 (Ville 1939).

    >>> round(weigh_evidence(np.full(20, 1.0)), 1)
    11.4
    >>> weigh_evidence(np.full(20, -0.5))
    0.0
    """
    # What each stake has made of 1 after each text, [stakes, N].
    capital = np.cumprod(1 + STAKES[:, None] * worse, axis=1)
    # An equal part of the capital on each stake.
    return float(max(0, np.log(capital.mean(axis=0)).max()))


def prove(passed: ndarray, bar: float, stakes: ndarray, shares: ndarray) -> float:
    """Return the log capital of bets that a system passes more often than `bar`.

    passed: [N], 1 or 0; stakes: [S], from 0 to 1, each with its share of the first capital. A trial
    turns a capital c into c * (1 + stake * (passed / bar - 1)). At 20 times the first capital,
    log 20 = 3.0, the bar is shown, at 95% confidence, whenever one looks.

    >>> round(prove(np.ones(299), 0.99, np.ones(1), np.ones(1)), 2)  # 299 without a failure
    3.01
    """
    # A success gains a little, a failure costs the whole stake.
    gain = passed / bar - 1
    # What each stake has made of 1 in the end, [S]; then their sum, by their shares.
    capital = np.prod(1 + stakes[:, None] * gain, axis=1)
    return float(np.log(shares @ capital))
