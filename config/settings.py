"""Settings of the stand-alone project, all from the environment.

JITNEY_DATA         directory for all that is written      default: .jitney beside manage.py
JITNEY_DATABASE     postgresql://user:password@host:port/name or mariadb://…; default: SQLite in $JITNEY_DATA
BUS_URL             where Redis is                         default: embedded://$JITNEY_DATA/server
CELERY_BROKER_URL   broker of ordinary Celery tasks            default: the bus's own server
BUS_USERNAME, BUS_PASSWORD      of the server, where the URL has none
BUS_SENTINEL_USERNAME, BUS_SENTINEL_PASSWORD    of the sentinels
BUS_PREFIX          prefix of all keys in Redis            default: bus
BUS_READ_ONLY       1: operator verbs are refused          default: 0
ALLOWED_HOSTS       host names to answer to, with commas   default: this machine only
DEBUG               1: tracebacks in pages, and the first client starts the embedded server
                                                           default: 1, and 0 where ALLOWED_HOSTS is set
HTTPS               1: only TLS; cookies, redirects, HSTS  default: 1 where ALLOWED_HOSTS is set, DEBUG is not
TRUSTED_ORIGINS     https://host, with commas, that forms may come from
                                                           default: https:// and ALLOWED_HOSTS
PROXY_HEADER        header in which the proxy says that TLS was used, such as X-Forwarded-Proto
                                                           default: none is believed
HSTS_SECONDS        how long browsers insist on TLS        default: a day
DJANGO_SECRET_KEY   signs sessions                         default: made once, kept in $JITNEY_DATA
LOG_LEVEL           of all loggers                         default: INFO
"""

from __future__ import annotations

import os
from pathlib import Path

from bus.conf import WORDS
from bus.safety import private
from config.database import database
from config.secret import secret_key
from config.tls import behind_tls


def _flag(name: str, default: str) -> bool:
    """Read a yes or no. Raises ValueError for another word: who wrote BUS_READ_ONLY=ja did not mean "no"."""
    word = os.environ.get(name) or default
    if word.strip().lower() not in WORDS:
        raise ValueError(f"{name} must be 1 or 0 (or true, yes, on; false, no, off), not {word!r}.")
    return WORDS[word.strip().lower()]


def _words(name: str) -> list[str]:
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]


BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("JITNEY_DATA") or BASE_DIR / ".jitney").expanduser().absolute()
private.directory(DATA_DIR.resolve())

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or secret_key(DATA_DIR / "secret-key")
_GIVEN_HOSTS = _words("ALLOWED_HOSTS")
ALLOWED_HOSTS = _GIVEN_HOSTS or ["localhost", "127.0.0.1", "[::1]"]
# A tracedback page tells a stranger too much: who says under which names others come has to ask for it.
DEBUG = _flag("DEBUG", "0" if _GIVEN_HOSTS else "1")

for _name, _value in behind_tls(
    ALLOWED_HOSTS,
    wanted=_flag("HTTPS", "1" if _GIVEN_HOSTS and not DEBUG else "0"),
    origins=_words("TRUSTED_ORIGINS"),
    proxy_header=os.environ.get("PROXY_HEADER", ""),
    hsts_seconds=os.environ.get("HSTS_SECONDS", ""),
).items():
    globals()[_name] = _value

BUS = {
    "URL": os.environ.get("BUS_URL") or f"embedded://{DATA_DIR / 'server'}",
    "USERNAME": os.environ.get("BUS_USERNAME"),
    "PASSWORD": os.environ.get("BUS_PASSWORD"),
    "SENTINEL_USERNAME": os.environ.get("BUS_SENTINEL_USERNAME"),
    "SENTINEL_PASSWORD": os.environ.get("BUS_SENTINEL_PASSWORD"),
    "PREFIX": os.environ.get("BUS_PREFIX") or "bus",
    "READ_ONLY": _flag("BUS_READ_ONLY", "0"),
}

# Under runserver a debug page shows the environment, and in it the passwords of URLs.
DEFAULT_EXCEPTION_REPORTER_FILTER = "bus.reporting.ReporterFilter"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "bus",
    "workers",
    "admin_ui",
    "demo",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": database(os.environ.get("JITNEY_DATABASE", ""), DATA_DIR)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

# Static files are served from where the apps keep them; there is no collectstatic step.
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL", "INFO").upper()},
}

# The broker is the bus's own server; workers/celery.py finds it.
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL")
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
