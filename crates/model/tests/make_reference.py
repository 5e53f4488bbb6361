"""Makes tests/data/tokenizer.json: texts with the token ids that other implementations give them.

    pip install tokenizers sentencepiece gguf xllamacpp jinja2
    python make_reference.py MODEL.gguf

References: llama.cpp (through xllamacpp's server) for the whole vocabulary of MODEL.gguf, which is
SmolLM2-135M-Instruct; the `tokenizers` library, configured by hand from the published tokenizer files, for
the pre-tokenizers of Llama 3, Qwen 2, SmolLM and GPT-2 over the first merges of that vocabulary; SentencePiece for a
small model trained here; `jinja2`, set up as `transformers` does, for chat templates.
"""

import io, json, os, random, socket, sys, tempfile, urllib.request

import gguf, jinja2, jinja2.sandbox, sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
random.seed(20)

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "\t\t x", "a", " a", "a ", "Hello, world!", "I'm you're WE'LL they'D it'S ’s",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "fn main() {\n    let x: Vec<u8> = vec![0; 1 << 20];\n\tprintln!(\"{x:?}\");\n}\n",
    "def f(a, b=None, *args, **kw):\n    return {k: v for k, v in kw.items() if v is not None}\n\n\n# end",
    "SELECT * FROM t WHERE a<=10 AND b!='it''s'; -- comment",
    "<html><body class=\"x\">&amp; &lt;b&gt;</body></html>",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x7fff 1e-9 ½ ² ٣٤ ⅷ 一二三 12ab34",
    "emoji 😀👍🏽👨‍👩‍👧‍👦🇩🇪 ❤️ ✈ mixed😀text", "中文分词测试,日本語のテキスト、한국어 문장입니다。",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย", "naïve café e\u0301 Å \u212b ﬁ ﬀ Ǆ ß ẞ İi",
    "a\u00a0b\u2003c\u200bd\u3000e\ufefff\u2028g", "\u0000\u0001\u001f\u007f\u0085", "\r\n\r\n x\r y\n\r",
    "trailing spaces   ", "   leading", "in   the    middle\t\tof  \n  text \n\n  end",
    "https://example.com/a/b?c=d&e=%20f#g user@example.org", "----====####****____....!!!!????",
    "\U00010348\U0001f9d1\u200d\U0001f680 \U0010fffd\ue000", "CamelCaseWord snake_case_word kebab-case-word SHOUTING",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>", "<|im_start|", "im_end|> <|im_end|><|im_end|>",
    "x" * 300, " " * 129 + "x", "ab" * 200, "\n " * 50, "1" * 50,
]
ALPHABETS = ["abcdefghijklmnop ETAOIN", " \t\n\r\u00a0\u3000", "0123456789٣½ .,", "äöüßéñçøåœ ", "中文日本語한국어、。 ",
             "😀👍🏽\u200d❤️🇩🇪 ", "{}[]()<>|\\/\"'`~!@#$%^&*-_=+;:?,. ", "\u0301\u0308\u200b\ufeff\u0000\u001b"]
for _ in range(200):
    mix = "".join(random.sample(ALPHABETS, random.randint(1, 4)))
    TEXTS.append("".join(random.choice(mix) for _ in range(random.randint(1, 60))))
WORDS = "The the model tokens don't I've 2024 return self. {x} => 'quoted' naïve 東京 😀 \n \n\n \t    ... -- 3.14 http://x.y".split(" ")
for _ in range(30):
    TEXTS.append(" ".join(random.choice(WORDS) for _ in range(random.randint(3, 60))))

WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def llama_cpp(path):
    import xllamacpp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port, params.n_ctx, params.warmup = port, 256, False
    server = xllamacpp.Server(params)
    base = server.listening_address

    def call(route, body):
        request = urllib.request.Request(base + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    return server, call


def small_bpe(tokens, merges, pre, normalizer=None, ignore_merges=False):
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges],
                       ignore_merges=ignore_merges)
    t = Tokenizer(model)
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    return [t.encode(x, add_special_tokens=False).ids for x in TEXTS]


def main(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    template = fields["tokenizer.chat_template"].contents()
    reference = {"texts": TEXTS}

    server, call = llama_cpp(path)
    reference["smollm2"] = {
        "control": [call("/tokenize", {"content": x, "add_special": False, "parse_special": True})["tokens"] for x in TEXTS],
        "plain": [call("/tokenize", {"content": x, "add_special": False, "parse_special": False})["tokens"] for x in TEXTS],
    }

    # Byte tokens and the first merges of the same vocabulary: a complete model of 2,000 tokens.
    controls, size = 17, 2000
    small_merges = []
    known = set(tokens[:size])
    for merge in merges:
        left, right = merge.split(" ")
        if left in known and right in known and left + right in known:
            small_merges.append(merge)
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda pattern: pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), byte])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    small = tokens[:size]
    missing = [t for t in sorted(pre_tokenizers.ByteLevel.alphabet()) if t not in known]
    small = small + missing
    reference["small"] = {
        "tokens": small, "controls": controls, "merges": small_merges,
        "ids": {
            "gpt-2": small_bpe(small, small_merges, gpt2),
            "smollm": small_bpe(small, small_merges, pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), gpt2])),
            "qwen2": small_bpe(small, small_merges, split(WORD % r"\p{N}"), normalizers.NFC()),
            "llama-bpe": small_bpe(small, small_merges, split(WORD % r"\p{N}{1,3}"), ignore_merges=True),
        },
    }

    model = io.BytesIO()
    corpus = [line for text in TEXTS for line in text.replace("\0", "").split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=900, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, minloglevel=2, hard_vocab_limit=False)
    piece = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = piece.get_piece_size()
    kind = lambda i: 2 if piece.is_unknown(i) else 3 if piece.is_control(i) else 6 if piece.is_byte(i) else 1
    # SentencePiece cuts at NUL and its trainer replaces nothing else; such texts are left out (null).
    reference["piece"] = {
        "tokens": [piece.id_to_piece(i) for i in range(count)],
        "scores": [piece.get_score(i) for i in range(count)],
        "types": [kind(i) for i in range(count)],
        "ids": [None if "\0" in x else piece.encode(x) for x in TEXTS],
    }

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda f: __import__("time").strftime(f, __import__("time").gmtime(1753900000))
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " padded \n"}],
        [{"role": "user", "content": "1 < 2 & \"q\" 'r' é 😀"}, {"role": "assistant", "content": "ok\n"},
         {"role": "user", "content": "multi\nline\n\ntext"}],
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "d <é> \"q\"",
              "parameters": {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}}}]
    templates = {"smollm2": template, "tools": TOOL_TEMPLATE, "python": PYTHON_TEMPLATE}
    reference["templates"] = []
    for name, source in templates.items():
        for messages in conversations:
            for offered in (None, tools):
                text = environment.from_string(source).render(
                    messages=messages, tools=offered, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
                case = {"source": source, "messages": messages, "tools": offered, "text": text}
                if name == "smollm2" and offered is None:
                    applied = call("/apply-template", {"messages": messages})["prompt"]
                    case["llama_cpp"] = applied
                reference["templates"].append(case)
    server = None
    with open(os.path.join(HERE, "data", "tokenizer.json"), "w") as out:
        json.dump(reference, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


# What published templates do with tools, system messages, dates and blocks.
TOOL_TEMPLATE = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y, %A %B %-d %H:%M:%S %j"[:-3]) %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'none' %}
{%- endif %}
[{{ today }}] {{ system }}
{% if tools is not none and tools %}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
        {{- tool | tojson(indent=4) }}
    {%- endfor %}
{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and ns.last < 0 %}{% set ns.last = (messages|length - 1) - loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception('bad role ' + message.role) }}
    {%- endif %}
    {{- '<' + message.role + '>' + message['content'] | trim + '</' + message.role + '>' }}{{ ' last' if loop.index0 == ns.last }}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

PYTHON_TEMPLATE = """{% for message in messages %}
{% if message.get('name') is none and 'tool_calls' not in message %}
{{ message.role.upper() }}: {{ message.content.strip().split('\\n')[-1].replace('<', '[') }}
{% if message.content.startswith('1') and not message.content.endswith('x') %}{% continue %}{% endif %}
{% for key, value in message.items() %}{{ key }}={{ value.lstrip() }};{% endfor %}

{% endif %}
{% endfor %}
{% if tools %}{% for t in tools %}{{ t.function.parameters.properties | list | join(', ') }} {{ t.function.description | length }}{% endfor %}{% endif %}
{{ messages | map(attribute='role') | join('/') }} {{ (messages | selectattr('role', 'equalto', 'user') | list) | length }} {{ none }} {{ true }} {{ 3 // 2 }} {{ 7 % 3 }} {{ [1, 'a', {'k': none}] }}
{{ eos_token }}
"""

if __name__ == "__main__":
    main(sys.argv[1])
