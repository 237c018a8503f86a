"""The HTTP contract: what a request may say, what an answer looks like, and how a mistake is told.

    POST /v1/chat/completions        words and media in, words and media out; SSE with "stream": true
    POST /v1/images/generations      {"prompt", "n", "size", "response_format", "seed", "guidance", "negative"}
    POST /v1/audio/speech            {"input", "voice", "response_format": mp3 | wav | flac | opus | pcm} → a sound
    POST /v1/audio/transcriptions    multipart: file, model, response_format (json | text), temperature
    POST /v1/tokenize                {"url": "data:…"} → the codes
    POST /v1/detokenize              {"modality", "codes", "prefix"} → {"url": "data:…"}
    GET  /v1/models  /v1/models/ID   /v1/settings  /health  /metrics  /  /static/…

**Chat, in.** `messages` as OpenAI's: `content` is a string or a list of parts `{"type": "text", "text"}`,
`{"type": "image_url", "image_url": {"url"}}`, `{"type": "input_audio", "input_audio": {"data", "format"}}`,
`{"type": "audio_url", "audio_url": {"url"}}`, `{"type": "video_url", "video_url": {"url"}}`. URLs are data URLs; http(s)
ones only where the server was started for them. `modalities`: left out, the model puts media where it likes; `["text"]`
words only; one medium, or `["text", "audio"]`, and the answer holds it; otherwise the answer may hold what is listed.
`audio`: `{"voice", "format"}`. Also `temperature`, `top_p`, `seed`, `max_tokens` / `max_completion_tokens`, `stop`, `n`
(1), `stream`, `stream_options.include_usage`, and beyond OpenAI `guidance`, `negative` and `stream_partial`. Other fields
are ignored, as OpenAI's servers ignore them.

**Chat, out.** `message.content` is a string where the answer is words, and a list of parts where it holds pictures or
clips: `{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}`, `{"type": "video_url", "video_url":
{"url": "data:video/mp4;base64,…"}}`. Sound is `message.audio = {"id", "data", "transcript", "expires_at"}`; a second
sound of one answer is a part `{"type": "audio_url", "audio_url": {"url"}}`.

**Chat, streamed.** `data: {chat.completion.chunk}` lines, then `data: [DONE]`. Words are `choices[0].delta.content`.
A finished medium is `choices[0].delta.content_parts = [part]`, with `image_url` and `video_url` parts as above and
sound as `{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,…"}}`. With `"stream_partial": true`, and a
tokenizer whose codes are ordered, a picture on its way is `choices[0].delta.partial_image = {"index", "url"}`, where
`index` counts the pictures of the answer. A failure after the first chunk is `data: {"error": {…}}`.

**Tokenize.** `{"modality", "codes": [flat ints, all groups], "segments": [{"name", "start", "count", "grid": [t, h, w]
or null}], "ordered", "groups"}`; `start` and `count` are in code steps. **Detokenize** takes the same flat codes;
`prefix` decodes only the first so many, where the tokenizer is ordered.

**Mistakes.** `{"error": {"message", "type", "param", "code"}}` with 400 (a value), 401 (the key), 404 (a path or a
model), 405, 408, 413 (size), 415 (what a file is), 429 (busy, with Retry-After), 500, 503 (shutting down) or 504.
"""
