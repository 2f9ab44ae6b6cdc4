"""The chat page in a real browser: a streamed chat, stop, the text mode, nothing from elsewhere.
With SHOTS=DIR it leaves screenshots there. Usage: page.py [NAME…]"""
import os, sys, time
sys.path.insert(0, os.path.dirname(__file__))
import browser
from harness import *

if not browser.program():
    print("SKIP the chat page: there is no chromium (package chromium)")
    sys.exit(77)
server = Server("page", model="max_context_len = 200000\n")
URL = f"http://127.0.0.1:{server.port}/"
SHOTS = os.environ.get("SHOTS")
LAST = "document.querySelector('#log').lastElementChild"


def shot(page, name):
    if SHOTS:
        os.makedirs(SHOTS, exist_ok=True)
        page.shot(f"{SHOTS}/{name}.png")


def chat(page, text):
    page.js("document.getElementById('input').focus()")
    page.type(text)
    page.key("Enter", 13, "\r")


@case
def a_chat_streams_and_stops():
    page = browser.Browser(URL)
    try:
        page.wait_for("document.getElementById('model').value === 'tiny'")
        chat(page, "What is a <b>licence</b>?")
        page.wait_for("document.querySelectorAll('.turn').length === 2")
        page.wait_for("document.getElementById('send').textContent === 'Send'", 60)
        page.wait_for(LAST + ".querySelector('.figures')")
        figures = page.js(LAST + ".querySelector('.figures').textContent")
        assert "tokens/s" in figures and "first after" in figures, figures
        same(page.js("document.querySelector('.turn.user .body').textContent"), "What is a <b>licence</b>?")
        same(page.js("document.querySelectorAll('.turn b').length"), 0)
        assert page.js(LAST + ".querySelector('.body').textContent.length") > 0
        shot(page, "chat-desktop")
        # A long one, stopped from the keyboard: the slot is free at once.
        page.js("document.getElementById('o-max_tokens').value = 100000; document.getElementById('o-max_tokens').oninput()")
        chat(page, "More")
        server.wait_for(lambda: server.metric("rwkv_requests_running") == 1, "it writes")
        page.wait_for(LAST + ".querySelector('.body').textContent.length > 50")
        shot(page, "chat-streaming")
        page.key("Escape", 27)
        page.wait_for("document.getElementById('send').textContent === 'Send'")
        server.wait_idle()
        # It is there again after a reload of the page.
        page.call("Page.reload")
        page.wait_for("document.querySelectorAll('.turn').length === 4")
        assert all(u.startswith(URL) or u.startswith("data:") for u in page.requests), page.requests
    finally:
        page.close()

@case
def a_text_goes_on_and_back():
    page = browser.Browser(URL)
    try:
        page.js("document.getElementById('tab-text').click()")
        page.js("document.getElementById('text').focus()")
        page.type("You may reproduce ")
        page.key("Enter", 13)
        page.js("document.getElementById('send').click()")
        page.wait_for("document.getElementById('text').value.length > 60")
        page.wait_for("document.getElementById('send').textContent === 'Continue'", 60)
        assert page.js("document.getElementById('text').value").startswith("You may reproduce ")
        shot(page, "text-desktop")
        page.js("document.getElementById('undo').click()")
        assert len(page.js("document.getElementById('text').value")) < 25
    finally:
        page.close()

@case
def a_phone_shows_it_whole():
    for dark in (False, True):
        page = browser.Browser(URL, 390, 844, phone=True, dark=dark)
        try:
            page.wait_for("document.getElementById('model').value === 'tiny'")
            chat(page, "Who may use this work?")
            page.wait_for(LAST + ".querySelector('.figures')", 60)
            assert page.js("document.documentElement.scrollWidth") <= 390
            shot(page, "chat-phone-dark" if dark else "chat-phone")
            page.js("document.getElementById('settings').click()")
            assert page.js("document.getElementById('side').getBoundingClientRect().width") == 390
            shot(page, "settings-phone-dark" if dark else "settings-phone")
        finally:
            page.close()

@case
def a_desktop_in_the_dark():
    page = browser.Browser(URL, dark=True)
    try:
        page.wait_for("document.getElementById('model').value === 'tiny'")
        shot(page, "empty-dark")
        chat(page, "Hello")
        page.wait_for(LAST + ".querySelector('.figures')", 60)
        page.js("document.getElementById('settings').click()")
        shot(page, "settings-dark")
    finally:
        page.close()

@case
def errors_are_shown():
    page = browser.Browser(URL)
    try:
        page.wait_for("document.getElementById('model').value === 'tiny'")
        page.js("document.getElementById('o-temperature').value = -1; document.getElementById('o-temperature').oninput()")
        chat(page, "x")
        page.wait_for("document.querySelector('.error')")
        assert "temperature" in page.js("document.querySelector('.error').textContent")
        shot(page, "error")
    finally:
        page.close()


if __name__ == "__main__":
    run(sys.argv[1:])
