from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("jitney", "0006_mark_copy_era"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="topic",
            options={
                "ordering": ["name"],
                "permissions": [
                    ("publish_messages", "Can publish messages"),
                    ("peek_messages", "Can read messages"),
                    ("manage_groups", "Can create, pause, resume, move and delete groups"),
                    ("retry_dead_letters", "Can retry dead letters"),
                    ("discard_dead_letters", "Can discard dead letters"),
                ],
            },
        ),
    ]
