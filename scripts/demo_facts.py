"""What the bundled demo model learns about AccelGen: names, questions and answers.

`demo_data` multiplies these by question templates, spelling and conversation shapes. Answers
are short on purpose: a five-million-parameter model repeats them, it does not reason.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing to know: how it is called, what it is, and what "tell me more" adds."""

    names: tuple[str, ...]
    answer: str
    more: str
    questions: tuple[str, ...] = ()


PROCESSES = (
    Topic(
        ("the scheduler", "the scheduler process"),
        "The scheduler decides, for every iteration, which requests run and how many tokens "
        "each of them processes. It holds the request table, the policy and the cost model.",
        "The scheduler makes its plan one iteration ahead, so that the worker never waits. It "
        "also decides at admission whether the objective of a request can be met.",
        ("Who decides which requests run?", "Which process holds the policy?"),
    ),
    Topic(
        ("the frontend", "the frontend process"),
        "The frontend speaks HTTP with the clients. It offers the OpenAI API, turns text into "
        "tokens, turns tokens back into text and streams the answer.",
        "The frontend also keeps the journal: the prompt and all tokens generated so far for "
        "each live request. You can run several frontends with --frontends.",
        ("Which process speaks HTTP?", "Who tokenizes my prompt?"),
    ),
    Topic(
        ("the KV manager", "the kvmanager", "the kv manager process"),
        "The KV manager owns the blocks of the KV cache. It gives blocks to requests, keeps the "
        "block tables and finds prompts that share a prefix.",
        "When blocks run short, the KV manager reports it and the scheduler preempts a request. "
        "Free, used and cached blocks always add up to the total.",
        ("Who owns the blocks?", "Which process manages the KV cache?"),
    ),
    Topic(
        ("the worker", "the worker process"),
        "The worker holds the weights of the model and the KV cache tensors. It runs the model "
        "on a packed batch and samples the next tokens.",
        "The worker mixes prefill chunks and decodes in one batch without padding. There is one "
        "worker for each device.",
        ("Which process runs the model?", "Who samples the tokens?"),
    ),
    Topic(
        ("the supervisor", "the supervisor process"),
        "The supervisor starts the other processes, watches their heartbeats and stops them. "
        "It is the process behind accelgen up.",
        "The supervisor sees at once when a process exits. It gives each scheduler a new epoch, "
        "a number that only grows.",
        ("Who starts the processes?", "Which process watches the others?"),
    ),
)

TERMS = (
    Topic(
        ("AccelGen", "this server", "the AccelGen server"),
        "AccelGen is a language model server that keeps the service-level objective of each "
        "request. It speaks the OpenAI API and runs as separate processes.",
        "A request can carry an objective for its time to first token, its time per output "
        "token or its deadline. AccelGen says at the end whether the objective was kept.",
        (
            "What does AccelGen do?",
            "What is AccelGen for?",
            "What can AccelGen do?",
            "Why should I use AccelGen?",
            "What is special about AccelGen?",
            "What are you running on?",
            "What is this?",
        ),
    ),
    Topic(
        ("an SLO", "SLO", "SLOs", "a service-level objective", "service level objective"),
        "An SLO is a service-level objective: a promise about speed. In AccelGen it is a bound "
        "on the time to first token, the time per output token or the whole answer.",
        "Each request may carry its own SLO. AccelGen answers at admission whether it expects "
        "to keep it, and reports at the end whether it was kept.",
        ("What does SLO stand for?", "Why do SLOs matter?"),
    ),
    Topic(
        ("TTFT", "time to first token", "the time to first token"),
        "TTFT is the time to first token: how long a client waits from sending the request "
        "until the first token of the answer arrives.",
        "TTFT covers the time in the queue and the prefill of the prompt. Long prompts have a "
        "larger TTFT.",
        ("What does TTFT stand for?", "How long until the first token?"),
    ),
    Topic(
        ("TPOT", "time per output token", "the time per output token"),
        "TPOT is the time per output token: the mean time between two tokens of an answer after "
        "the first one.",
        "A small TPOT makes the text flow smoothly. It grows when the batch is large or when "
        "long prompts share the iteration.",
        ("What does TPOT stand for?",),
    ),
    Topic(
        ("TBT", "time between tokens"),
        "TBT is the time between tokens: the gap between two neighbouring tokens of one answer.",
        "TPOT is the mean of these gaps. One long gap can break a TBT objective while the mean "
        "still looks good.",
        ("What does TBT stand for?",),
    ),
    Topic(
        ("goodput",),
        "Goodput is the number of requests per second that met every objective they stated.",
        "Throughput counts all the work. Goodput counts only the work that came in time.",
    ),
    Topic(
        ("throughput",),
        "Throughput is the number of tokens or requests that the server finishes per second.",
        "Large batches raise the throughput but also the time of each iteration.",
    ),
    Topic(
        ("the KV cache", "KV cache", "a KV cache", "the key-value cache"),
        "The KV cache keeps the keys and values of all tokens seen so far, so that the model "
        "does not compute them again. AccelGen stores it in blocks, also called pages.",
        "The KV cache grows with every token. When it is full, a request must wait or be "
        "preempted.",
        ("What does KV stand for?", "Why is there a KV cache?"),
    ),
    Topic(
        ("a block", "a KV block", "paged attention", "a paged KV cache"),
        "The KV cache is cut into blocks of a few tokens each. A request gets blocks as it "
        "grows, so almost no memory is wasted.",
        "The block table of a request lists its blocks in order, like the page table of an "
        "operating system.",
    ),
    Topic(
        ("a block table", "block tables"),
        "A block table lists, for one request, the blocks that hold its keys and values.",
        "The KV manager writes the block tables and the worker reads them.",
    ),
    Topic(
        ("the prefix cache", "prefix caching", "a prefix cache"),
        "The prefix cache keeps full blocks of earlier prompts. A new prompt that starts with "
        "the same tokens uses these blocks and skips that part of the prefill.",
        "Blocks are found by a chain of hashes, and the least recently used ones are dropped "
        "first.",
    ),
    Topic(
        ("dynamic chunking", "SLO-guaranteed dynamic chunking"),
        "Dynamic chunking cuts a long prompt into pieces. The size of each piece follows the "
        "tightest objective in the batch, so that no other request is late.",
        "AccelGen derives the token budget of an iteration from the pivot forward size and the "
        "tightest objective.",
        ("How does AccelGen handle long prompts?", "How are long prompts processed?"),
    ),
    Topic(
        ("chunked prefill", "a chunk", "a prefill chunk"),
        "Chunked prefill processes a long prompt in several pieces over several iterations. "
        "Other requests go on decoding in the meantime.",
        "A small chunk keeps the gaps between tokens short. A large chunk finishes the prompt "
        "sooner.",
    ),
    Topic(
        ("prefill", "the prefill", "the prefill phase"),
        "Prefill is the first phase of a request: the model reads the whole prompt and fills "
        "the KV cache. At its end comes the first token.",
        "Prefill is bound by compute, because many tokens are processed at once.",
    ),
    Topic(
        ("decode", "decoding", "the decode phase"),
        "Decode is the second phase of a request: the model makes one token per iteration until "
        "the answer is complete.",
        "Decode is bound by memory speed, because the weights are read again for every token.",
    ),
    Topic(
        ("an iteration", "a step"),
        "In one iteration the scheduler makes a plan, the KV manager adds the blocks, and the "
        "worker runs the model once. The result goes back to the scheduler.",
        "An iteration takes some milliseconds. Plans are made one iteration ahead.",
        ("What happens in one iteration?", "How does one iteration go?"),
    ),
    Topic(
        ("continuous batching", "a batch", "batching"),
        "With continuous batching requests join and leave the batch at every iteration. Nobody "
        "waits for the longest answer.",
        "In AccelGen a batch is packed: all tokens lie in one row without padding.",
    ),
    Topic(
        ("a policy", "the policy", "a scheduling policy"),
        "A policy is the rule by which the scheduler orders and mixes requests. AccelGen comes "
        "with the policies accelgen, sarathi and vllm.",
        "A policy is a pure function: it reads a view of all requests and returns a plan. The "
        "policies cacheopt and slos-serve are planned.",
        (
            "Which policies are there?",
            "Which policies can I use?",
            "What policies do you have?",
            "List the policies.",
            "Which scheduling policies does AccelGen have?",
        ),
    ),
    Topic(
        ("the accelgen policy", "the policy accelgen"),
        "The accelgen policy orders requests by remaining time, cuts long prompts by dynamic "
        "chunking and fills a batch by both tokens and KV blocks.",
        "Requests that would be late in the next iteration are urgent and go first.",
    ),
    Topic(
        ("the sarathi policy", "sarathi", "Sarathi"),
        "The sarathi policy fills each iteration with decodes first and then with prefill "
        "chunks up to a fixed number of tokens.",
        "It keeps the gaps between tokens short, but it does not look at objectives.",
    ),
    Topic(
        ("the vllm policy", "vllm", "vLLM"),
        "The vllm policy serves requests first come, first served, and runs prefills before "
        "decodes.",
        "It is simple and fast, but a long prompt can delay everybody else.",
    ),
    Topic(
        ("cacheopt", "CacheOPT"),
        "CacheOPT is a published scheduler that allots the KV cache with care and predicts "
        "output lengths. As a policy of AccelGen it is planned.",
        "It tries to avoid preemptions by keeping a reserve of blocks.",
    ),
    Topic(
        ("slos-serve", "SLOs-Serve"),
        "SLOs-Serve is a published scheduler that plans several stages with an objective each. "
        "As a policy of AccelGen it is planned.",
        "It plans ahead and refuses requests that it cannot serve in time.",
    ),
    Topic(
        ("preemption", "a preempted request"),
        "Preemption takes the blocks of a running request away, because a more urgent one needs "
        "them. The request is computed again later.",
        "No token is lost by a preemption, and none is delivered twice.",
    ),
    Topic(
        ("admission", "admission control"),
        "At admission AccelGen predicts whether the objective of a new request can be kept. If "
        "the queue is full, the answer is status 429 with a time to retry.",
        "The prediction comes from the cost model and the requests that are already there.",
    ),
    Topic(
        ("the cost model", "a cost model"),
        "The cost model predicts how long an iteration takes from the number of prompt tokens, "
        "decodes and their context.",
        "It is fitted by accelgen profile and corrected online after every iteration.",
    ),
    Topic(
        ("an epoch", "the epoch", "epochs"),
        "An epoch is a growing number given to each scheduler. All processes obey the highest "
        "epoch and drop messages of older ones.",
        "In this way a new scheduler can take over without confusion.",
    ),
    Topic(
        ("the journal", "a journal"),
        "The journal holds the prompt and all generated tokens of each live request. It is kept "
        "by the frontend.",
        "After a failure the request goes on from the journal, so no token is repeated or skipped.",
    ),
    Topic(
        ("a token", "tokens"),
        "A token is a small piece of text, often a word or a part of a word. The model reads "
        "and writes tokens.",
        "My vocabulary has about four thousand tokens, made by byte-pair encoding.",
    ),
    Topic(
        ("a tokenizer", "the tokenizer"),
        "A tokenizer cuts text into tokens and puts tokens together to text again. In AccelGen "
        "the frontend does this.",
        "My tokenizer works on bytes, so any text can be encoded.",
    ),
    Topic(
        ("ZeroMQ", "msgpack"),
        "The processes of AccelGen talk over ZeroMQ sockets, and the messages are encoded with "
        "msgpack.",
        "Any msgpack library can read the messages. There is no pickle anywhere.",
        (
            "How do the processes talk to each other?",
            "How do the processes communicate?",
            "Which message format is used?",
        ),
    ),
    Topic(
        ("an LLM", "a language model", "a large language model"),
        "A language model predicts the next token of a text. By doing it again and again it "
        "writes whole answers.",
        "Large models have billions of parameters. I have only about five million.",
    ),
    Topic(
        ("the context length", "the context window", "the maximum prompt length"),
        "The context length is the largest number of tokens that a model can hold, prompt and "
        "answer together. Mine is 8192 tokens.",
        "I was trained on short texts, so I make more sense with short prompts.",
        ("How long can my prompt be?", "How many tokens can you read?"),
    ),
)
