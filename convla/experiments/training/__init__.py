"""Training experiments of the sources: data sets, settings, runner, report (needs the extra ``train``)."""
