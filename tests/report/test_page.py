"""The page does what its controls say."""

from playwright.sync_api import expect


def chart(page, title):
    return page.locator("figure.chart", has=page.get_by_role("heading", name=title, exact=True))


def point(page, figure, part):
    box = figure.locator("svg[role=img]").bounding_box()
    page.mouse.move(box["x"] + 56 + part * (box["width"] - 70), box["y"] + box["height"] / 2)


def test_a_run_has_its_charts_cards_and_tables(open_report, runs):
    page = open_report(runs["muon"])
    expect(page.get_by_role("heading", level=1)).to_have_text("muon")
    for title in ["Loss", "Learning rate", "Gradient norm", "Expert load by layer", "Dead experts",
                  "Selection bias", "Indexer recall", "Speed", "Time of a step", "Peak memory", "MFU"]:
        expect(chart(page, title)).to_have_count(1)
    assert page.locator(".card").count() >= 10
    expect(page.locator(".card", has_text="Rollbacks")).to_contain_text("1")
    expect(page.get_by_role("button", name="rolled back")).to_be_visible()
    expect(page.locator("td.text").first).to_contain_text("Once upon a time")
    expect(page.locator(".config")).to_contain_text("lr.peak")
    expect(page.locator(".config")).to_contain_text("model.hidden_size")
    expect(page.locator(".badge.rollback")).to_have_count(1)
    assert "NaN" not in page.content().split('id="data"')[0]


def test_hovering_shows_values_and_events(open_report, runs):
    page = open_report(runs["muon"])
    loss = chart(page, "Loss")
    loss.scroll_into_view_if_needed()
    point(page, loss, 0.5)
    tip = loss.locator(".tip")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("training, smoothed")
    expect(tip).to_contain_text("step 15")
    # A spike's rollback is told where it went back to: step 64 of 300.
    point(page, loss, 64 / 300)
    expect(tip).to_contain_text("deviations above its median")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


def test_the_axis_changes_for_all_charts(open_report, runs):
    page = open_report(runs["muon"])
    ticks = chart(page, "Learning rate").locator("text.tick")
    steps = ticks.all_text_contents()
    page.get_by_text("Tokens", exact=True).first.click()
    tokens = ticks.all_text_contents()
    assert tokens != steps and any(t.endswith("M") for t in tokens)
    page.get_by_text("Time", exact=True).click()
    assert any(t.endswith("min") or t.endswith(" s") for t in ticks.all_text_contents())


def test_dragging_enlarges_and_a_double_click_goes_back(open_report, runs):
    page = open_report(runs["muon"])
    ticks = chart(page, "Learning rate").locator("text.tick")
    before = ticks.all_text_contents()
    loss = chart(page, "Loss")
    loss.scroll_into_view_if_needed()
    point(page, loss, 0.5)
    page.mouse.down()
    point(page, loss, 0.6)
    page.mouse.up()
    reset = page.get_by_role("button", name="Show all", exact=True)
    expect(reset).to_be_visible()
    assert ticks.all_text_contents() != before
    loss.locator("svg[role=img]").dblclick()
    expect(reset).to_be_hidden()
    assert ticks.all_text_contents() == before


def test_scales_and_curves_can_be_switched(open_report, runs):
    page = open_report(runs["muon"])
    loss = chart(page, "Loss")
    curves = loss.locator("path.curve")
    n = curves.count()
    drawn = curves.nth(1).get_attribute("d")
    loss.get_by_role("button", name="log").click()
    assert curves.nth(1).get_attribute("d") != drawn
    loss.get_by_role("button", name="MTP").click()
    assert curves.count() == n - 1


def test_runs_are_compared(open_report, runs):
    page = open_report(runs["muon"], runs["adamw"])
    table = page.get_by_role("region", name="Run, Last validation loss")
    expect(table).to_contain_text("never")  # the slower never gets to the loss of the faster
    ratio = table.locator("tbody tr b").filter(has_text="%").first.text_content()
    assert 30 < float(ratio.split()[0]) < 100
    expect(page.locator(".summary-table")).to_contain_text("Validation loss")
    rows = page.locator(".config tbody tr:visible")
    n = rows.count()
    page.get_by_label("Only what differs").check()
    assert 0 < rows.count() < n
    expect(page.locator(".config tr.differs").first).to_be_visible()


def test_runs_of_different_kinds_lie_in_one_page(open_report, runs):
    page = open_report(runs["muon"], runs["plain"])
    expect(chart(page, "Loss").get_by_role("button", name="plain: validation")).to_be_visible()
    expect(chart(page, "Indexer recall").locator(".legend button")).to_have_count(2)


def test_damage_is_said(open_report, runs, tmp_path):
    run = tmp_path / "damaged"
    run.mkdir()
    lines = (runs["plain"] / "metrics.jsonl").read_text().splitlines()
    lines[6] = lines[6][:40]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page = open_report(run)
    expect(page.get_by_role("alert")).to_contain_text("metrics.jsonl line 7")


def test_a_run_of_one_step_and_hostile_texts(open_report, tmp_path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"kind":"step","step":1,"tokens":10,"loss":4}\n'
        '{"kind":"sample","step":1,"prompt":"</script><script>document.title=1</script>","text":"<b>"}\n'
        '{"kind":"event","step":1,"what":"<i>","sentence":"<!-- "}\n'
    )
    (run / "config.toml").write_text("[broken\n<script>")
    page = open_report(run)
    expect(page.get_by_role("heading", level=1)).to_have_text(run.name)
    expect(page.locator("td.text")).to_have_text("</script><script>document.title=1</script><b>")
    expect(page.locator("pre")).to_contain_text("[broken")
    assert page.locator("main img").count() == 0


def test_it_fits_a_phone(open_report, runs):
    page = open_report(runs["muon"], runs["adamw"])
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
