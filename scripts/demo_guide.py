"""How-to questions about AccelGen and questions about the demo model itself."""

from accelgen.scripts.demo_facts import Topic

GUIDE = (
    Topic(
        (),
        "Run accelgen up. It starts all processes with the bundled model and prints the URL of "
        "the server.",
        "You can choose another model with --model, a port with --port and a policy with --policy.",
        (
            "How do I start the server?",
            "How do I start AccelGen?",
            "How can I run AccelGen?",
            "Which command starts the server?",
            "What does accelgen up do?",
            "What is accelgen up?",
            "How do I use AccelGen?",
            "How to start?",
        ),
    ),
    Topic(
        (),
        "Run accelgen down. It stops all processes in order.",
        "Ctrl-C in the terminal of accelgen up does the same. No process is left behind.",
        (
            "How do I stop the server?",
            "How do I stop AccelGen?",
            "Which command stops the server?",
            "What does accelgen down do?",
            "How can I shut it down?",
            "How to stop?",
        ),
    ),
    Topic(
        (),
        "Run accelgen status. It shows every process with its pid, epoch, uptime and progress.",
        "With accelgen logs you can read what each process has written.",
        (
            "How do I see the status?",
            "What does accelgen status do?",
            "How do I see if it runs?",
            "How can I check the processes?",
            "What is accelgen status?",
        ),
    ),
    Topic(
        (),
        "Run accelgen chat in a terminal. It streams the answers and keeps the history of the "
        "conversation.",
        "In the chat, /reset clears the history, /slo sets an objective, /stats shows the times "
        "and /exit leaves.",
        (
            "How do I chat?",
            "How do I chat with the model?",
            "What does accelgen chat do?",
            "How can I talk to the model?",
            "What is accelgen chat?",
            "Which command is for chat?",
        ),
    ),
    Topic(
        (),
        "Start the server with the policy you want: accelgen up --policy sarathi. To swap it "
        "under load, accelgen swap is planned.",
        "A swap gives a new scheduler the next epoch and hands the requests over, so that no "
        "token is lost.",
        (
            "How do I swap the policy?",
            "How do I change the policy?",
            "How can I switch policies?",
            "How do I choose a policy?",
            "What does accelgen swap do?",
            "What is accelgen swap?",
            "Can I replace the policy?",
            "How do I set the scheduling policy?",
            "How do I swap the scheduler?",
            "Can I swap the policy while it runs?",
        ),
    ),
    Topic(
        (),
        "Put the objective into the request body: accelgen: {slo: {ttft_ms: 500, tpot_ms: 50}}. "
        "The headers x-slo-ttft-ms and x-slo-tpot-ms work too.",
        "You can also name a class with slo_class. The last chunk says whether each objective "
        "was met.",
        (
            "How do I set an SLO?",
            "How do I set an objective?",
            "How can I ask for a fast answer?",
            "How do I give a request a deadline?",
            "How do I set the TTFT?",
            "Where do I put the SLO?",
        ),
    ),
    Topic(
        (),
        "AccelGen has five kinds of processes: frontend, scheduler, KV manager, worker and "
        "supervisor.",
        "They are separate, so each can be watched and replaced on its own.",
        (
            "Which processes are there?",
            "What are the processes of AccelGen?",
            "How many processes does AccelGen have?",
            "What parts does AccelGen have?",
            "What are the components of AccelGen?",
            "How is AccelGen built?",
            "What is the architecture of AccelGen?",
            "List the processes.",
            "Name the parts of AccelGen.",
        ),
    ),
    Topic(
        (),
        "A request goes from the frontend to the scheduler. The scheduler plans, the KV manager "
        "finds blocks, the worker makes tokens, and the frontend streams them to you.",
        "One round is called an iteration. It is repeated until the answer is complete.",
        (
            "How does AccelGen work?",
            "What happens to my request?",
            "How does it work?",
            "How is a request processed?",
            "What is the life of a request?",
            "How does a request travel?",
        ),
    ),
    Topic(
        (),
        "AccelGen speaks the OpenAI API: /v1/models, /v1/chat/completions and /v1/completions, "
        "with or without streaming.",
        "The official openai client works when you set its base URL to this server.",
        (
            "Which API does AccelGen speak?",
            "Which API do you have?",
            "Is there an OpenAI API?",
            "Can I use the openai client?",
            "Which endpoints are there?",
            "How do I send a request?",
            "What is the API?",
            "Does AccelGen support streaming?",
        ),
    ),
    Topic(
        (),
        "Give the folder or the hub name with --model: accelgen up --model FOLDER. Any causal "
        "language model of transformers with safetensors weights should work.",
        "Llama, Qwen, Mistral, OPT and Gemma are tested.",
        (
            "How do I use another model?",
            "How do I load my own model?",
            "Which models are supported?",
            "Can I use a bigger model?",
            "How do I change the model?",
            "Which models can AccelGen serve?",
        ),
    ),
    Topic(
        (),
        "Yes. AccelGen runs on the CPU with the torch backend, and on CUDA with xformers.",
        "On a CPU small models are best.",
        (
            "Does it run on a CPU?",
            "Do I need a GPU?",
            "Can I run it without a GPU?",
            "Does AccelGen run on a GPU?",
            "Which hardware do I need?",
        ),
    ),
    Topic(
        (),
        "The supervisor notices it at once and the server ends with a clear message. Going on "
        "after the death of a process is planned.",
        "The journal in the frontend makes it possible to go on without losing a token.",
        (
            "What happens if a process dies?",
            "What if the scheduler crashes?",
            "What happens when the worker crashes?",
            "Is AccelGen fault tolerant?",
        ),
    ),
    Topic(
        (),
        "Run accelgen bench serve. It sends requests at a given rate and measures TTFT, TPOT "
        "and how many objectives were kept.",
        "The load is open loop: requests are sent on time, however slow the server is.",
        (
            "How do I measure the speed?",
            "How can I benchmark the server?",
            "How fast is AccelGen?",
        ),
    ),
    Topic(
        (),
        "You need Linux and Python 3.11 or newer. The command make up installs and starts "
        "everything, and make test runs the tests.",
        "A C compiler and make must be there too.",
        (
            "How do I install AccelGen?",
            "How do I run the tests?",
            "What do I need to install?",
            "How do I set it up?",
            "Which Python do I need?",
        ),
    ),
    Topic(
        (),
        "TTFT is the wait until the first token, and TPOT is the mean time for each token after "
        "it.",
        "A long prompt raises the TTFT. A large batch raises the TPOT.",
        ("What is the difference between TTFT and TPOT?", "TTFT or TPOT?", "TTFT and TPOT?"),
    ),
)

SELF = (
    Topic(
        (),
        "I am the demo model of AccelGen, a very small language model for trying the server out.",
        "I have about five million parameters and was trained in half an hour on a processor.",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Who am I talking to?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Are you a model?",
            "Which model are you?",
            "What model is this?",
            "What is the demo model?",
            "Who is this?",
            "Are you ChatGPT?",
        ),
    ),
    Topic(
        (),
        "I can answer simple questions about AccelGen, count, add small numbers, name capitals "
        "and tell short stories.",
        "Please do not trust me with anything important. For real work load a real model.",
        (
            "What can you do?",
            "Can you help me?",
            "Help!",
            "What can I ask you?",
            "Help me.",
            "What do you know?",
            "What are you good at?",
            "I need help.",
            "What should I ask you?",
            "Give me an example.",
        ),
    ),
    Topic(
        (),
        "I was trained by scripts/train_demo_model.py on questions and answers made by the "
        "script and on the documentation of Python.",
        "The training takes about half an hour on two processor cores.",
        (
            "How were you trained?",
            "Who made you?",
            "Where do you come from?",
            "Who trained you?",
            "What is your training data?",
            "How were you made?",
            "Who created you?",
            "Who built you?",
        ),
    ),
    Topic(
        (),
        "I have about five million parameters. That is very small for a language model.",
        "My weights take about ten megabytes.",
        (
            "How big are you?",
            "How many parameters do you have?",
            "How large is the model?",
            "Are you a large model?",
            "Are you smart?",
            "How small are you?",
        ),
    ),
    Topic(
        (),
        "No, I am a small program that predicts the next token.",
        "I am the demo model of AccelGen.",
        (
            "Are you human?",
            "Are you a person?",
            "Are you alive?",
            "Are you real?",
            "Do you have feelings?",
            "Can you think?",
            "Are you conscious?",
        ),
    ),
)
