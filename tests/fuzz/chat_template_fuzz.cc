// fuzz-links: retort_chat
// A chat template from a model file: parsed, and rendered with a conversation.
#include "agent/serve/chat/chat_template.h"
#include "tests/fuzz/fuzz_seeds.h"

using namespace retort;

std::vector<std::string> fuzz_seeds() {
  return {
      "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim ~ eos_token }}\n{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|>{% endif %}",
      "{%- set ns = namespace(n=0) -%}{%- for m in messages if m.role != 'user' -%}{%- set ns.n = ns.n + 1 "
      "-%}"
      "{{- loop.index ~ m | tojson(indent=2) -}}{%- else -%}none{%- endfor -%}{{ ns.n * 3 // 2 % 4 }}",
      "{% macro f(a, b='x') %}{{ a[1:-1:2] }}{{ b.split(',')[0] | upper }}{% endmacro %}{{ f(messages, "
      "b='1,2') }}",
      "{# c #}{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq', "
      "'user') | list }}"
      "{{ x is defined and x is not none or [1, {'a': 2.5e1}] }}{{ raise_exception('no') if messages | "
      "length > 9 }}",
  };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const json::object variables =
      json::parse(R"({"messages": [{"role": "system", "content": "Be brief."},
    {"role": "user", "content": "héllo"}, {"role": "assistant", "content": null, "tool_calls": [{"n": 1}]}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"})")
          .as_object();
  const auto parsed =
      ChatTemplate::parse(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!parsed) {
    fuzz::require(!parsed.error().message.empty());
    return 0;
  }
  const auto first = parsed->render(variables), second = parsed->render(variables);
  const bool tells_time =
      std::string_view(reinterpret_cast<const char*>(data), size).find("now") != std::string_view::npos;
  fuzz::require(first.has_value() == second.has_value());
  fuzz::require(!first || tells_time || *first == *second);
  return 0;
}
