#include "journal/stream.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace hadal::journal {

bool Stream::closed() const {
  return std::all_of(choices.begin(), choices.end(),
                     [](const ChoiceState& choice) { return choice.close.has_value(); });
}

std::int64_t Stream::closed_at() const {
  std::int64_t latest = 0;
  for (const ChoiceState& choice : choices) {
    if (choice.close) latest = std::max(latest, choice.close->closed);
  }
  return latest;
}

std::vector<CloseRecord> close_open_choices(Stream& stream, CloseReason reason,
                                            const std::string& detail, std::int64_t unix_seconds) {
  std::vector<CloseRecord> closes;
  for (std::size_t c = 0; c < stream.choices.size(); ++c) {
    ChoiceState& choice = stream.choices[c];
    if (choice.close) continue;
    choice.close = CloseRecord{.local = stream.local(),
                               .choice = static_cast<std::uint16_t>(c),
                               .reason = reason,
                               .n_tokens = choice.n_tokens,
                               .closed = unix_seconds,
                               .tokens_sha256 = digest_of(choice.tokens),
                               .detail = detail};
    closes.push_back(*choice.close);
  }
  return closes;
}

void Replay::apply(const RecordView& record, std::uint64_t segment) {
  if (!first_segment_) first_segment_ = segment;
  const Position begin{segment, record.begin}, end{segment, record.end};
  switch (record.type) {
    case RecordType::open:
      return apply_open(decode_open(record.payload), begin, end);
    case RecordType::step:
      return apply_step(decode_step(record.payload), end);
    case RecordType::close:
      return apply_close(decode_close(record.payload), end);
    case RecordType::table:
      return apply_table(decode_table(record.payload), segment == *first_segment_);
    case RecordType::cancel: {
      const CancelRecord cancel = decode_cancel(record.payload);
      if (Stream* stream = find(cancel.local, record.type)) {
        stream->cancelled = cancel.reason;
        stream->end = end;
      }
      return;
    }
    case RecordType::snap: {
      const SnapRecord snap = decode_snap(record.payload);
      if (Stream* stream = find(snap.local, record.type)) {
        stream->snap = snap;
        stream->end = end;
      }
      return;
    }
  }
  throw Error(ErrorCode::corrupt_data,
              fmt::format("a record has type {}, which this program does not know",
                          static_cast<unsigned>(record.type)));
}

void Replay::finish() {
  if (damage_ == Damage::tolerate || only_ != 0) return;
  for (const auto& [local, orphan] : orphans_) {
    if (orphan.closing) continue;
    throw Error(ErrorCode::corrupt_data,
                fmt::format("stream \"{}\" (number {}) was open when the first segment began, but "
                            "its request is in none: an earlier segment is missing",
                            orphan.name, local));
  }
}

void Replay::contradiction(Stream* stream, const std::string& sentence) const {
  if (damage_ == Damage::refuse) throw Error(ErrorCode::corrupt_data, sentence);
  if (stream != nullptr && stream->fault.empty()) stream->fault = sentence;
}

void Replay::gap(Stream& stream, const std::string& sentence) {
  if (stream.fault.empty()) stream.fault = sentence;
}

Stream* Replay::find(LocalId local, RecordType type) {
  if (only_ != 0 && local != only_) return nullptr;
  if (const auto it = streams_.find(local); it != streams_.end()) return &it->second;
  if (orphans_.contains(local)) {
    // Its copy may come later, and says all of this again.
    return nullptr;
  }
  contradiction(nullptr, fmt::format("a {} record names stream number {}, which no record opens",
                                     to_string(type), local));
  return nullptr;
}

void Replay::apply_open(OpenRecord record, Position begin, Position end) {
  const LocalId local = record.local;
  if (only_ != 0 && local != only_) return;
  next_local_ = std::max(next_local_, local + 1);
  if (const auto it = streams_.find(local); it != streams_.end()) {
    Stream& known = it->second;
    if (known.open.name != record.name || known.open.request_sha256 != record.request_sha256) {
      contradiction(&known, fmt::format("stream number {} is opened twice, as \"{}\" and as \"{}\"",
                                        local, known.open.name, record.name));
      return;
    }
    known.begin = begin;  // a copy: it and what follows say everything
    known.end = end;
    return;
  }
  orphans_.erase(local);
  if (const auto it = names_.find(record.name); it != names_.end()) {
    Stream& former = streams_.at(it->second);
    if (!former.closed()) {
      contradiction(&former, fmt::format("stream \"{}\" is opened again (number {}) while number "
                                         "{} of that name is unfinished",
                                         record.name, local, it->second));
    }
    streams_.erase(it->second);  // closed, its retention over, and the name given to another
  }
  names_[record.name] = local;
  Stream& stream = streams_[local];
  stream.choices.resize(record.n_choices);
  stream.open = std::move(record);
  stream.begin = begin;
  stream.end = end;
}

void Replay::apply_step(const StepRecord& record, Position end) {
  Stream* stream = nullptr;
  LocalId present = 0;
  for (const TokenEntry& entry : record.tokens) {
    if (entry.local != present) {
      stream = find(entry.local, RecordType::step);
      present = entry.local;
    }
    if (stream == nullptr) continue;
    stream->end = end;
    add_token(*stream, entry);
  }
}

void Replay::add_token(Stream& stream, const TokenEntry& entry) {
  if (entry.choice >= stream.choices.size()) {
    contradiction(&stream, fmt::format("stream \"{}\" has {} choices, a token names choice {}",
                                       stream.open.name, stream.choices.size(), entry.choice));
    return;
  }
  ChoiceState& choice = stream.choices[entry.choice];
  if (entry.index < choice.n_tokens) {  // said again
    const bool kept = entry.index < choice.tokens.size();
    if (kept && choice.tokens[entry.index] != entry.token) {
      contradiction(&stream, fmt::format("stream \"{}\", choice {}: token {} is {} and, in a later "
                                         "record, {}",
                                         stream.open.name, entry.choice, entry.index,
                                         choice.tokens[entry.index], entry.token));
    }
    return;
  }
  if (!stream.fault.empty()) return;
  if (choice.close) {
    contradiction(&stream,
                  fmt::format("stream \"{}\", choice {}: token {} comes after the choice "
                              "was closed with {}",
                              stream.open.name, entry.choice, entry.index, choice.close->n_tokens));
    return;
  }
  if (entry.index > choice.n_tokens) {
    return gap(stream, fmt::format("the journal lost tokens {} to {} of choice {}", choice.n_tokens,
                                   entry.index - 1, entry.choice));
  }
  choice.tokens.push_back(entry.token);
  ++choice.n_tokens;
  ++stream.n_tokens;
  stream.events.push_back(entry);
}

void Replay::apply_close(CloseRecord record, Position end) {
  if (const auto it = orphans_.find(record.local); it != orphans_.end()) it->second.closing = true;
  Stream* stream = find(record.local, RecordType::close);
  if (stream == nullptr) return;
  stream->end = end;
  if (record.choice >= stream->choices.size()) {
    contradiction(stream, fmt::format("stream \"{}\" has {} choices, a CLOSE names choice {}",
                                      stream->open.name, stream->choices.size(), record.choice));
    return;
  }
  ChoiceState& choice = stream->choices[record.choice];
  if (choice.close) {
    if (choice.close->n_tokens != record.n_tokens ||
        choice.close->tokens_sha256 != record.tokens_sha256) {
      contradiction(stream, fmt::format("stream \"{}\", choice {} is closed twice, and not alike",
                                        stream->open.name, record.choice));
    }
    return;
  }
  // A choice that a fault cut short is closed with what is left of it, or not at all.
  const bool matches =
      record.n_tokens == choice.n_tokens && record.tokens_sha256 == digest_of(choice.tokens);
  if (!matches) {
    const std::string sentence = fmt::format(
        "stream \"{}\", choice {}: the CLOSE speaks of {} tokens that are not the {} logged before",
        stream->open.name, record.choice, record.n_tokens, choice.n_tokens);
    if (stream->fault.empty()) contradiction(stream, sentence);
    return;
  }
  choice.close = std::move(record);
  if (keep_ == Keep::unfinished && stream->closed()) {
    stream->events = {};
    stream->open.prompt = {};
    stream->open.request = {};
    for (ChoiceState& done : stream->choices) done.tokens = {};
  }
}

void Replay::apply_table(const TableRecord& table, bool first) {
  if (!first && only_ == 0) {
    std::set<LocalId> listed;
    for (const TableRecord::Entry& entry : table.streams) listed.insert(entry.local);
    for (auto& [local, stream] : streams_) {
      if (!stream.closed() && !listed.contains(local)) {
        gap(stream, "the journal lost the end of the stream");
      }
    }
  }
  for (const TableRecord::Entry& entry : table.streams) {
    next_local_ = std::max(next_local_, entry.local + 1);
    if (only_ != 0 && entry.local != only_) continue;
    const auto it = streams_.find(entry.local);
    if (it == streams_.end()) {
      if (first) {
        orphans_.try_emplace(entry.local, Orphan{.name = entry.name});
      } else if (!orphans_.contains(entry.local)) {
        contradiction(nullptr, fmt::format("stream \"{}\" (number {}) is listed as open, but no "
                                           "record opens it",
                                           entry.name, entry.local));
      }
      continue;
    }
    Stream& stream = it->second;
    for (std::size_t c = 0; c < std::min(stream.choices.size(), entry.n_tokens.size()); ++c) {
      const std::uint32_t known = stream.choices[c].n_tokens;
      if (known < entry.n_tokens[c] && stream.fault.empty()) {
        gap(stream, fmt::format("the journal lost tokens {} to {} of choice {}", known,
                                entry.n_tokens[c] - 1, c));
      }
    }
  }
}

}  // namespace hadal::journal
