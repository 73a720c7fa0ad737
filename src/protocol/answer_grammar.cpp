#include "protocol/answer_grammar.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "grammar/schema.h"
#include "protocol/chat_format.h"

namespace hadal::protocol {
namespace {

using namespace hadal::grammar;

[[noreturn]] void refuse(const std::string& param, const Error& error) {
  throw ApiException(
      ApiError{.message = fmt::format("{}: {}", param, error.what()), .param = param});
}

class Writer {
 public:
  Writer(const AnswerForm& form, const ChatFormat& format, GrammarCache& cache)
      : form_(form),
        format_(format),
        mark_token_(mark_token(format, cache)),
        common_(cache.common(closer("</", std::string(format.parameter_tag) + ">"))),
        builder_(common_.grammar->tables()),
        trie_(cache.trie()) {}

  std::shared_ptr<const Grammar> write() {
    const StateId start = builder_.state();
    switch (form_.start) {
      case AnswerStart::after_mark:
        block(start);
        break;
      case AnswerStart::block:
        block(mark(builder_.text(start, "\n\n<")));
        break;
      case AnswerStart::json: {
        json_value(start);
        if (!form_.tools.empty()) block(mark(builder_.text(start, "\n\n<")));
        break;
      }
    }
    const bool has_block = form_.start != AnswerStart::json || !form_.tools.empty();
    const RuleId id = builder_.rule();
    builder_.set_rule(id, {.start = start,
                           .needs = {{.rules = json_, .required = true, .by_itself = has_block}}});
    bodies_.push_back(id);
    try {
      Tables tables = builder_.finish(bodies_);
      return std::make_shared<const Grammar>(std::move(tables), std::vector{id}, trie_,
                                             common_.grammar);
    } catch (const Error& e) {
      refuse(form_.schema ? form_.schema_param : "tools", e);
    }
  }

 private:
  static std::optional<TokenId> mark_token(const ChatFormat& format, const GrammarCache& cache) {
    const io::Tokenizer& tokenizer = cache.trie()->tokenizer();
    const auto id = tokenizer.token_id(format.dsml_mark);
    return id && tokenizer.is_added(*id) ? id : std::nullopt;
  }
  [[nodiscard]] TagCloser closer(std::string before, std::string after) const {
    return {.before = std::move(before),
            .mark = std::string(format_.dsml_mark),
            .after = std::move(after),
            .mark_token = mark_token_};
  }
  void mark(StateId from, StateId to) {
    if (mark_token_) {
      builder_.token(from, *mark_token_, to);
    } else {
      builder_.text(from, format_.dsml_mark, to);
    }
  }
  StateId mark(StateId from) {
    const StateId to = builder_.state();
    mark(from, to);
    return to;
  }
  // The rest of a closing tag: `before`, which is "</" or its end, the mark and the tag's name.
  void close_tag(StateId from, std::string before, std::string_view tag, StateId to) {
    closer(std::move(before), std::string(tag) + ">").add(builder_, from, to);
  }
  StateId accepting() {
    const StateId s = builder_.state();
    builder_.accept(s);
    return s;
  }

  void json_value(StateId start) {
    json_ = {common_.json.object};
    if (form_.schema) {
      try {
        SchemaCompiler schema(builder_, common_.json, *form_.schema,
                              form_.strict_schema ? SchemaMode::strict : SchemaMode::tolerant);
        json_ = schema.root().all();
        schema.finish();
      } catch (const Error& e) {
        refuse(form_.schema_param, e);
      }
    }
    builder_.call(start, json_, accepting());
  }

  // Behind '<' and the mark.
  void block(StateId from) {
    const StateId name = builder_.state();  // behind the quote before a name
    const StateId after = builder_.state();
    const std::string invoke = std::string(format_.invoke_tag) + " name=\"";
    builder_.text(mark(builder_.text(from, std::string(format_.calls_tag) + ">\n<")), invoke, name);
    for (const CallableTool& tool : form_.tools) {
      const RuleId body[] = {invocation(tool)};
      builder_.call(builder_.text(name, tool.name + "\">\n"), body, after);
    }
    const StateId next = builder_.text(after, "\n<");
    close_tag(next, "/", format_.calls_tag, accepting());
    if (form_.parallel) builder_.text(mark(next), invoke, name);
  }

  // What an invocation holds, and its closing tag.
  RuleId invocation(const CallableTool& tool) {
    ObjectSchema schema{.properties = {}, .additional = anything()};
    if (!tool.parameters.empty()) {
      try {
        SchemaCompiler compiler(builder_, common_.json_in_tags, tool.parameters,
                                tool.strict ? SchemaMode::strict : SchemaMode::tolerant);
        schema = compiler.object();
        if (tool.strict) compiler.finish();
      } catch (const Error& e) {
        if (tool.strict) refuse(tool.param, e);
      }
    }
    if (!tool.strict) loosen(schema);
    std::sort(schema.properties.begin(), schema.properties.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    return parameters(schema);
  }

  [[nodiscard]] ValueForms anything() const {
    return {.others = common_.json_in_tags.all_but_strings(),
            .strings = {},
            .any_string = true,
            .string_values = {}};
  }
  // Only names, and what kind of value they have, hold without strict.
  void loosen(ObjectSchema& schema) const {
    const auto loosened = [&](ValueForms& forms) {
      if (!forms.others.empty()) forms.others = common_.json_in_tags.all_but_strings();
      // A schema that admits nothing is a mistake that strict would have named.
      const bool is_empty =
          forms.others.empty() && !forms.any_string && forms.string_values.empty();
      if (is_empty) forms = anything();
    };
    for (ObjectSchema::Property& property : schema.properties) {
      property.required = false;
      loosened(property.forms);
    }
    if (schema.additional) loosened(*schema.additional);
  }

  RuleId parameters(const ObjectSchema& schema) {
    const auto n = static_cast<std::uint32_t>(schema.properties.size());
    Rule rule;
    rule.n_properties = n;
    rule.start = builder_.state();
    const StateId after = builder_.state();                              // behind a parameter
    const StateId closing = builder_.guarded_state({.complete = true});  // behind "</"
    close_tag(closing, "", format_.invoke_tag, accepting());

    KeyForm keys;
    for (std::uint32_t i = 0; i < n; ++i) {
      const ObjectSchema::Property& property = schema.properties[i];
      const StateId end = builder_.guarded_state({.mark = static_cast<std::int32_t>(i)});
      keys.names.push_back(property.name);
      keys.ends.push_back(end);
      rule.needs.push_back(value(property.forms, end, after, property.required));
    }
    Guard more{.first = 0, .last = n, .any_left = true};
    if (schema.additional) {
      more.extra = static_cast<std::int32_t>(n);
      const StateId end = builder_.guarded_state({.key_end = true});
      keys.extra = {
          .end = end,
          .need = more.extra,
          .form = {.style = TextForm::Style::raw_key, .min_length = 1, .key_bytes = true}};
      rule.needs.push_back(value(*schema.additional, end, after, false));
    }
    const StateId key = add_keys(builder_, keys);
    const StateId opening = builder_.guarded_state(more);  // behind '<' and the mark
    builder_.text(opening, std::string(format_.parameter_tag) + " name=\"", key);

    // No parameters: a blank line, or (some write it so) none.
    const StateId first = builder_.text(rule.start, "<"), next = builder_.text(after, "\n<");
    const StateId blank = builder_.guarded_state({.complete = true});
    builder_.edge(rule.start, '\n', blank);
    builder_.edge(builder_.text(blank, "<"), '/', closing);
    for (const StateId s : {first, next}) {
      builder_.edge(s, '/', closing);
      mark(s, opening);
    }
    const RuleId id = builder_.rule();
    builder_.set_rule(id, std::move(rule));
    bodies_.push_back(id);
    return id;
  }

  // The string attribute, a value that goes with it, and the closing tag; from behind the quote of
  // the name.
  Need value(const ValueForms& forms, StateId from, StateId after, bool required) {
    Need need{.rules = {}, .required = required};
    const StateId attribute = builder_.text(from, " string=\"");
    if (forms.any_string) {
      const RuleId text[] = {common_.text_in_tags};
      need.rules.push_back(text[0]);
      builder_.call(builder_.text(attribute, "true\">"), text, after);
    } else {
      const std::string end = fmt::format("/{}{}", format_.dsml_mark, format_.parameter_tag);
      std::vector<std::string> texts = forms.string_values;
      std::erase_if(texts, [&](const std::string& t) { return t.find(end) != std::string::npos; });
      if (!texts.empty()) {
        const StateId closing = builder_.state();
        add_choice(builder_, builder_.text(attribute, "true\">"), std::move(texts), '<', closing);
        close_tag(closing, "/", format_.parameter_tag, after);
        need.by_itself = true;
      }
    }
    if (!forms.others.empty()) {
      need.rules.insert(need.rules.end(), forms.others.begin(), forms.others.end());
      const StateId end = builder_.state();
      builder_.call(builder_.text(attribute, "false\">"), forms.others, end);
      close_tag(end, "</", format_.parameter_tag, after);
    }
    return need;
  }

  const AnswerForm& form_;
  const ChatFormat& format_;
  std::optional<TokenId> mark_token_;
  const CommonRules& common_;
  GrammarBuilder builder_;
  std::shared_ptr<const TokenTrie> trie_;
  std::vector<RuleId> json_, bodies_;
};

std::string key_of(const AnswerForm& form, ChatProfile profile) {
  std::string key =
      fmt::format("{} {} {} {} {}\n", static_cast<int>(profile), static_cast<int>(form.start),
                  form.parallel, form.strict_schema, form.schema ? *form.schema : "");
  for (const CallableTool& tool : form.tools) {
    key += fmt::format("{}\n{} {}\n", tool.name, tool.strict, tool.parameters);
  }
  return key;
}

}  // namespace

std::shared_ptr<const grammar::Grammar> answer_grammar(const AnswerForm& form, ChatProfile profile,
                                                       grammar::GrammarCache& cache) {
  return cache.get(key_of(form, profile),
                   [&] { return Writer(form, chat_format(profile), cache).write(); });
}

}  // namespace hadal::protocol
